"""Measures time and memory of functions, on the CPU or a GPU."""

import ctypes
import platform
import statistics
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PROC_SELF = Path("/proc/self")


def machine(device: torch.device) -> str:
    """The hardware and the version of torch, in one line."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call."""
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - start


def interleaved_times(functions: list[Callable[[], Any]], device: torch.device, repeats: int) -> list[float]:
    """Median seconds of each function, called alternately after a warm-up, so that all run under the same load."""
    for function in functions:
        function()
    rounds = [[seconds(function, device) for function in functions] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """Peak memory of one call minus the memory in use before, in bytes.

    On the CPU this is the growth of the resident set, read from /proc (Linux only).

    Raises:
        OSError: if /proc is not readable.
    """
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    # returns freed memory to the OS; otherwise reused memory would not be counted
    ctypes.CDLL(None).malloc_trim(0)
    (PROC_SELF / "clear_refs").write_text("5")  # resets the high-water mark
    before = resident_bytes("VmRSS")
    function()
    return resident_bytes("VmHWM") - before


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Tracks current and peak bytes of tensors created in this context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and counts the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.add_storage(tensor.untyped_storage())
        return result

    def add_storage(self, storage: torch.UntypedStorage) -> None:
        """Counts a storage until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.remove_storage, key, size)

    def remove_storage(self, key: int, size: int) -> None:
        """Subtracts a freed storage."""
        self.seen.discard(key)
        self.live -= size


def peak_tensor_bytes(function: Callable[[], Any]) -> int:
    """Peak bytes of the tensors of one call, without memory cached by the allocator."""
    memory = LiveTensors()
    with memory:
        function()
    return memory.peak


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = (PROC_SELF / "status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def wait(device: torch.device) -> None:
    """Waits until the device is synchronized."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def example_batch(size: int, dim: int, data: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Unit embeddings (size, dim) of 4 images per class, and labels.

    They are "random", "clustered" around the centre of their class (cosines of 0.3 within a class), or "tight" (0.9).
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(size, dim, generator=generator)
    centres = torch.randn(-(-size // 4), dim, generator=generator).repeat_interleave(4, 0)[:size]
    embeddings = {"random": noise, "clustered": centres + 1.5 * noise, "tight": centres + 0.3 * noise}[data]
    return F.normalize(embeddings, dim=1).to(device), (torch.arange(size) // 4).to(device)


def forward_backward(
    loss: Callable[[Tensor, Tensor], Tensor], embeddings: Tensor, labels: Tensor
) -> tuple[float, Tensor]:
    """Forward and backward of the loss; returns its value and gradient (N, D)."""
    leaf = embeddings.detach().requires_grad_()
    value = loss(leaf, labels)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), gradient


def three_products(embeddings: Tensor) -> None:
    """The N x N x D matrix products needed for a loss over all similarities and its gradient.

    At most 8,192 rows at a time, to limit memory.
    """
    for rows in torch.split(embeddings, 8192):
        similarities = rows @ embeddings.T
        similarities @ embeddings
        similarities.T @ rows
