"""Saves random state and buffers before a chunk's first pass and restores them for the recomputation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from lightning_recall.random_state import get_random_state, preserve_random_state, set_random_state

BufferSnapshot = tuple[str, Tensor, int, Tensor]
"""Buffer before a pass: name, tensor, version counter and copy."""


class FirstPassState:
    """Random state and buffers at the start of a chunk's first pass, restored for its recomputation.

    Saves the buffers of the embedder's modules. For a function, saves the buffers of modules that it calls, captures in
    its closure or receives through `partial`. torch's RNG state is restored by `checkpoint`.

    Args:
        embedder: the embedder to run.
        modules_with_changed_buffers: modules whose buffers were changed by an earlier chunk. None for the first chunk:
            changed buffers are then found by comparing values, which synchronises with the GPU.
    """

    def __init__(
        self, embedder: Callable[[Any], Any], modules_with_changed_buffers: set[nn.Module] | None = None
    ) -> None:
        self.modules = modules_of(embedder)
        # a function may call modules that it does not own
        self.is_module = isinstance(getattr(embedder, "__self__", embedder), nn.Module)
        self.modules_with_changed_buffers = modules_with_changed_buffers
        self.done = False
        self.buffers: dict[tuple[nn.Module, str], Tensor] = {}  # copies of the buffers that the pass changed

    @contextmanager
    def record(self) -> Iterator[None]:
        """Context manager for the first pass: saves random state and buffers."""
        self.random_state = get_random_state(with_torch=False)
        before: dict[nn.Module, list[BufferSnapshot]] = {}

        def save(module: nn.Module, inputs: object = None) -> None:  # noqa: ARG001  # signature of a forward pre-hook
            if module not in before:
                before[module] = snapshot_buffers(module)

        for module in self.modules:
            save(module)
        handle = None if self.is_module else register_module_forward_pre_hook(save)
        try:
            yield
        finally:
            if handle:
                handle.remove()
        changed = {
            module
            for module, buffers in before.items()
            if has_changed(module, buffers, self.modules_with_changed_buffers)
        }
        self.buffers = {(module, name): copy for module in changed for name, _, _, copy in before[module]}
        self.done = True

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Context manager for the recomputation: restores the saved state, and the current state afterwards."""
        buffers = {(module, name): getattr(module, name) for module, name in self.buffers}
        for (module, name), buffer in self.buffers.items():
            setattr(module, name, buffer.clone())
        try:
            with preserve_random_state(with_torch=False):
                set_random_state(self.random_state)
                yield
        finally:
            for (module, name), buffer in buffers.items():
                setattr(module, name, buffer)


def modules_of(embedder: Any) -> list[nn.Module]:
    """Returns all modules that an embedder contains.

    The embedder is a module, a method of a module, or a function that captures modules: in its closure or, for a
    `partial`, also in its arguments.
    """
    if isinstance(embedder, nn.Module):
        return list(embedder.modules())
    candidates = [getattr(embedder, "__self__", None)]
    if isinstance(embedder, partial):
        candidates += [embedder.func, *embedder.args, *embedder.keywords.values()]
    cells = [cell for cell in getattr(embedder, "__closure__", None) or () if cell != CellType()]
    candidates += [cell.cell_contents for cell in cells]
    candidates = [getattr(candidate, "__self__", candidate) for candidate in candidates]
    return [module for owner in candidates if isinstance(owner, nn.Module) for module in owner.modules()]


def snapshot_buffers(module: nn.Module) -> list[BufferSnapshot]:
    """Copies the buffers of a module, without its submodules."""
    named = list(module.named_buffers(recurse=False))
    for name, buffer in named:
        if is_lazy(buffer):
            raise ValueError(
                f"{type(module).__name__} has an uninitialised lazy buffer {name}: run one batch through it first."
            )
    return [(name, buffer, buffer._version, buffer.clone()) for name, buffer in named]


def has_changed(
    module: nn.Module, buffers: list[BufferSnapshot], modules_with_changed_buffers: set[nn.Module] | None
) -> bool:
    """Whether a pass has changed the buffers of a module."""
    if isinstance(module, _NormBase) and module.training:
        return bool(buffers)  # torch updates running statistics without increasing _version
    if modules_with_changed_buffers is not None and module in modules_with_changed_buffers:
        return True
    return any(
        getattr(module, name) is not buffer
        or buffer._version != version
        or (modules_with_changed_buffers is None and not torch.equal(buffer, copy))
        for name, buffer, version, copy in buffers
    )
