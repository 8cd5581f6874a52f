"""How the benchmarks measure: time and memory of alternatives, in one run, on the CPU or a GPU."""

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

PROCESS = Path("/proc/self")


def machine(device: torch.device) -> str:
    """The hardware and the release of torch, in one line."""
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


def interleaved(functions: list[Callable[[], Any]], device: torch.device, repeats: int) -> list[float]:
    """Median seconds of each function, called in turns after one warm-up each, so that all see the same machine."""
    for function in functions:
        function()
    rounds = [[seconds(function, device) for function in functions] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """Most memory that one call took beyond what was taken before, in bytes.

    On the CPU it is the growth of the resident set, read from /proc (Linux only).

    Raises:
        OSError: where /proc cannot tell.
    """
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier calls have freed, else it is used again unseen
    (PROCESS / "clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Counts the bytes that tensors made under it hold, now and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and notes the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.note(tensor.untyped_storage())
        return result

    def note(self, storage: torch.UntypedStorage) -> None:
        """Counts a storage until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        """A storage is freed."""
        self.seen.discard(key)
        self.live -= size


def peak_tensor_bytes(function: Callable[[], Any]) -> int:
    """Most bytes that the tensors of one call held at one time: what it needs, whatever the allocator keeps."""
    memory = LiveTensors()
    with memory:
        function()
    return memory.peak


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = (PROCESS / "status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def wait(device: torch.device) -> None:
    """Waits until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def example_batch(size: int, dim: int, data: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Unit embeddings (size, dim) of 4 images a class, and labels.

    They are "random", "clustered" about their class's centre (cosines of 0.3 within a class), or "tight" (0.9).
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(size, dim, generator=generator)
    centres = torch.randn(-(-size // 4), dim, generator=generator).repeat_interleave(4, 0)[:size]
    embeddings = {"random": noise, "clustered": centres + 1.5 * noise, "tight": centres + 0.3 * noise}[data]
    return F.normalize(embeddings, dim=1).to(device), (torch.arange(size) // 4).to(device)


def forward_backward(
    loss: Callable[[Tensor, Tensor], Tensor], embeddings: Tensor, labels: Tensor
) -> tuple[float, Tensor]:
    """One training step's share of the loss; gives its value and gradient (N, D)."""
    leaf = embeddings.detach().requires_grad_()
    value = loss(leaf, labels)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), gradient


def three_products(embeddings: Tensor) -> None:
    """The matrix products N x N x D that a loss over all similarities, and its gradient, are made of.

    At most 8,192 rows at a time, so that they fit where the loss does.
    """
    for rows in torch.split(embeddings, 8192):
        similarities = rows @ embeddings.T
        similarities @ embeddings
        similarities.T @ rows
