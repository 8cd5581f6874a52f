"""Finds the chunk size: the largest that fits in GPU memory, or the fastest on a CPU."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_recall.random_state import preserve_random_state
from lightning_recall.recompute.pytrees import batch_size_of, map_tensors, tensors_of

FREE_FRACTION = 0.2  # fraction of device memory left free, for gradients, the optimizer's state and the loss
INITIAL_CHUNK_SIZE = 16
CPU_CHUNK_SIZE = 128  # a CPU has enough memory, and larger chunks are not faster
CPU_SECONDS = 5.0  # time for the trials on a CPU
CLEARLY_FASTER = 0.9  # fraction of the time for which a smaller chunk is chosen; other processes disturb a trial more

PassTimes = tuple[float, float]
"""seconds of the forward pass of one row, and of its forward and backward pass"""


def auto_chunk_size(embedder: nn.Module, chunks: Sequence[Any], device: torch.device, keep_chunks: int = 1) -> int:
    """Returns the chunk size for `chunk_size="auto"`: the largest that fits, or on a CPU the fastest up to 128.

    Args:
        embedder: maps inputs of b rows to a tensor, or a dict or tuple of tensors.
        chunks: the inputs of a batch, as a list of pre-split chunks. The largest is tried.
        device: where the embedder is.
        keep_chunks: number of chunks whose activations are stored, see `chunked_forward`.

    Raises:
        ValueError: if not even one row fits.
    """
    if device.type == "cpu":
        return fastest_chunk_size(embedder, chunks, keep_chunks)
    return largest_chunk_size(embedder, max(chunks, key=batch_size_of), device)


def fastest_chunk_size(
    embedder: nn.Module,
    chunks: Sequence[Any],
    keep_chunks: int = 1,
    measure: Callable[[int], PassTimes] | None = None,
) -> int:
    """Returns the chunk size, at most 128, with the fastest step on a CPU.

    Times forward and backward of 16, 32, 64 and 128 rows, for about 5 seconds, and adds the forward passes that a step
    in chunks repeats. Sizes for which no time is left count as fast per row as the largest size timed. A smaller size
    is chosen if it saves a tenth of the time. Leaves gradients, buffers and random states unchanged.

    Returns 128, or the largest chunk if that is smaller, without a trial if the embedder has BatchNorm in train mode,
    which normalises over a chunk: the result must not depend on measured times.

    Args:
        embedder: see `auto_chunk_size`.
        chunks: see `auto_chunk_size`.
        keep_chunks: see `auto_chunk_size`.
        measure: maps a chunk size to its times; None: times the embedder.
    """
    largest = max(chunks, key=batch_size_of)
    limit = min(CPU_CHUNK_SIZE, batch_size_of(largest))
    if normalises_over_chunks(embedder) or limit <= INITIAL_CHUNK_SIZE:
        return limit
    measure = measure or partial(time_passes, embedder, largest)
    sizes = [size for size in (16, 32, 64, 128) if size < limit] + [limit]
    rows = [batch_size_of(chunk) for chunk in chunks]
    end = time.perf_counter() + CPU_SECONDS
    times = measure(sizes[0])
    steps = {sizes[0]: step_seconds(rows, sizes[0], keep_chunks, times)}
    for size in sizes[1:]:
        if time.perf_counter() + 2 * size * times[1] < end:  # a trial is a warm-up and a measurement
            times = measure(size)
        steps[size] = step_seconds(rows, size, keep_chunks, times)
    best = limit
    for size in reversed(sizes):
        best = size if steps[size] < CLEARLY_FASTER * steps[best] else best
    return best


def step_seconds(rows: Sequence[int], size: int, keep_chunks: int, times: PassTimes) -> float:
    """Seconds of a step over chunks of `rows` rows, split into parts of at most `size` and recomputed if not kept."""
    forward, forward_backward = times
    parts = [count / -(-count // size) for count in rows if count for _ in range(-(-count // size))]
    return sum(parts) * forward_backward + sum(parts[: max(len(parts) - keep_chunks, 0)]) * forward


def normalises_over_chunks(embedder: nn.Module) -> bool:
    """Whether a BatchNorm layer uses the statistics of a chunk: in train mode, or without running statistics."""
    layers = [module for module in embedder.modules() if isinstance(module, _BatchNorm)]
    return any(layer.training or layer.running_mean is None for layer in layers)


def time_passes(embedder: nn.Module, inputs: Any, size: int) -> PassTimes:
    """Times forward and backward of the first `size` rows on a CPU, after a warm-up."""
    cpu = torch.device("cpu")
    run_trial(embedder, inputs, size, cpu)
    return run_trial(embedder, inputs, size, cpu)


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
    cuda_devices = [device] if device.type == "cuda" else []
    for gpu in cuda_devices:
        torch.cuda.reset_peak_memory_stats(gpu)
    try:
        run_trial(embedder, inputs, size, device)
    except torch.OutOfMemoryError:
        return False
    finally:
        if cuda_devices:
            torch.cuda.empty_cache()
    return all(
        torch.cuda.max_memory_allocated(gpu) <= (1 - FREE_FRACTION) * torch.cuda.get_device_properties(gpu).total_memory
        for gpu in cuda_devices
    )


def run_trial(embedder: nn.Module, inputs: Any, size: int, device: torch.device) -> PassTimes:
    """Runs forward and backward of the first `size` rows; leaves gradients, buffers and random states unchanged.

    Returns:
        The seconds for a row, which mean something on a CPU only: kernels of a GPU run later.
    """
    parameters = [p for p in embedder.parameters() if p.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in embedder.named_buffers()}  # copies, which forward may modify
    cuda_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda_devices), preserve_random_state(with_torch=False), torch.enable_grad():
        chunk = map_tensors(lambda tensor: tensor[:size].to(device), inputs)
        start = time.perf_counter()
        output = torch.func.functional_call(embedder, buffers, (chunk,))
        forward = time.perf_counter() - start
        total = torch.stack([tensor.float().sum() for tensor in tensors_of(output)]).sum()
        if parameters:
            torch.autograd.grad(total, parameters, allow_unused=True)
    return forward / size, (time.perf_counter() - start) / size
