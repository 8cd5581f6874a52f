"""Finds how many rows one pass of an embedder may have."""

from typing import Any

import torch
from torch import nn

from lightning_recall.recompute.first_pass import python_random_restored
from lightning_recall.recompute.nests import map_tensors, num_rows, tensors_of

MARGIN = 0.2  # share of the device's memory left free, for gradients, the optimizer's state and the loss
FIRST_TRIAL = 16  # rows
CPU_CHUNK_SIZE = 128  # rows; a CPU has no such limit, and larger matrices make it no faster


def largest_chunk_size(embedder: nn.Module, inputs: Any, device: torch.device) -> int:
    """Largest number of rows, a power of two or all there are, whose two passes fit the device's memory.

    Tries 16 rows, twice as many while they fit and half as many while they do not. A fifth of the device's memory is
    left free. Gradients, buffers and random numbers are as before. On a CPU it is 128, untried.

    Args:
        embedder: maps inputs of b rows to a tensor, or a dict or tuple of tensors.
        inputs: a tensor (N, ...), or what else `chunked_forward` takes but a list of chunks, to try with.
        device: where the embedder is.

    Raises:
        ValueError: if not even one row fits.
    """
    available = num_rows(inputs)
    if device.type == "cpu":
        return min(CPU_CHUNK_SIZE, available)
    size = min(FIRST_TRIAL, available)
    while size > 0 and not fits(embedder, inputs, size, device):
        size //= 2
    if size == 0:
        raise ValueError("Not even one image fits the device's memory: take a smaller network or smaller images.")
    while size >= FIRST_TRIAL and size < available and fits(embedder, inputs, min(2 * size, available), device):
        size = min(2 * size, available)
    return size


def fits(embedder: nn.Module, inputs: Any, size: int, device: torch.device) -> bool:
    """Whether forward and backward of `size` rows succeed, with the margin left free."""
    parameters = [p for p in embedder.parameters() if p.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in embedder.named_buffers()}  # these may change
    cuda = [device] if device.type == "cuda" else []
    for gpu in cuda:
        torch.cuda.reset_peak_memory_stats(gpu)
    try:
        with torch.random.fork_rng(cuda), python_random_restored(), torch.enable_grad():
            chunk = map_tensors(lambda leaf: leaf[:size].to(device), inputs)
            output = torch.func.functional_call(embedder, buffers, (chunk,))
            total = torch.stack([leaf.float().sum() for leaf in tensors_of(output)]).sum()
            if parameters:
                torch.autograd.grad(total, parameters, allow_unused=True)
    except torch.OutOfMemoryError:
        return False
    finally:
        if cuda:
            torch.cuda.empty_cache()
    return all(
        torch.cuda.max_memory_allocated(gpu) <= (1 - MARGIN) * torch.cuda.get_device_properties(gpu).total_memory
        for gpu in cuda
    )
