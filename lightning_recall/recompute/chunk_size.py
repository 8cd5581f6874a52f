"""Finds the largest chunk size that fits in device memory."""

from typing import Any

import torch
from torch import nn

from lightning_recall.random_state import preserve_random_state
from lightning_recall.recompute.pytrees import batch_size_of, map_tensors, tensors_of

FREE_FRACTION = 0.2  # fraction of device memory left free, for gradients, the optimizer's state and the loss
INITIAL_CHUNK_SIZE = 16
CPU_CHUNK_SIZE = 128  # a CPU has enough memory, and larger chunks are not faster


def largest_chunk_size(embedder: nn.Module, inputs: Any, device: torch.device) -> int:
    """Returns the largest chunk size (a power of two, or the whole batch) whose forward and backward fit in memory.

    Starts at 16 rows, doubles while they fit and halves while they do not. A fifth of the device memory is left free.
    Leaves gradients, buffers and random states unchanged. On a CPU, returns 128 without a trial.

    Args:
        embedder: maps inputs of b rows to a tensor, or a dict or tuple of tensors.
        inputs: a sample batch in any form that `chunked_forward` accepts, except a list of chunks.
        device: where the embedder is.

    Raises:
        ValueError: if not even one row fits.
    """
    available = batch_size_of(inputs)
    if device.type == "cpu":
        return min(CPU_CHUNK_SIZE, available)
    size = min(INITIAL_CHUNK_SIZE, available)
    while size > 0 and not fits(embedder, inputs, size, device):
        size //= 2
    if size == 0:
        raise ValueError("Not even one image fits in device memory: use a smaller network or smaller images.")
    while size >= INITIAL_CHUNK_SIZE and size < available and fits(embedder, inputs, min(2 * size, available), device):
        size = min(2 * size, available)
    return size


def fits(embedder: nn.Module, inputs: Any, size: int, device: torch.device) -> bool:
    """Whether forward and backward of `size` rows succeed and leave FREE_FRACTION of the memory free."""
    parameters = [p for p in embedder.parameters() if p.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in embedder.named_buffers()}  # copies, which forward may modify
    cuda_devices = [device] if device.type == "cuda" else []
    for gpu in cuda_devices:
        torch.cuda.reset_peak_memory_stats(gpu)
    try:
        with torch.random.fork_rng(cuda_devices), preserve_random_state(with_torch=False), torch.enable_grad():
            chunk = map_tensors(lambda tensor: tensor[:size].to(device), inputs)
            output = torch.func.functional_call(embedder, buffers, (chunk,))
            total = torch.stack([tensor.float().sum() for tensor in tensors_of(output)]).sum()
            if parameters:
                torch.autograd.grad(total, parameters, allow_unused=True)
    except torch.OutOfMemoryError:
        return False
    finally:
        if cuda_devices:
            torch.cuda.empty_cache()
    return all(
        torch.cuda.max_memory_allocated(gpu) <= (1 - FREE_FRACTION) * torch.cuda.get_device_properties(gpu).total_memory
        for gpu in cuda_devices
    )
