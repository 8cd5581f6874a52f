"""The state in which a chunk's first pass started, so that its recomputation starts there too and leaves no trace."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

Noted = tuple[str, Tensor, int, Tensor]
"""name, buffer, version and copy of a buffer before a pass"""


class FirstPass:
    """Where a chunk's first pass started: the state that its recomputation must find again.

    Buffers are those of the embedder's modules. If it is a function, they are those of the modules that it calls, and
    of modules that it holds in its closure or as arguments of `partial`. torch's own random numbers are `checkpoint`'s
    business.

    Args:
        embedder: what passes run.
        changing: modules whose buffers an earlier chunk's pass has changed; None: this chunk is the first, and finds
            them by comparing values, which a GPU must be waited for.
    """

    def __init__(self, embedder: Callable[[Any], Any], changing: set[nn.Module] | None = None) -> None:
        self.known = known_modules(embedder)
        self.whole = isinstance(getattr(embedder, "__self__", embedder), nn.Module)  # else it may call others
        self.changing = changing
        self.over = False
        self.buffers: dict[tuple[nn.Module, str], Tensor] = {}  # as they were, those that the pass changed

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Notes the random state and the buffers as they are; to be held during the first pass."""
        self.random, self.numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # what embedders draw from
        before: dict[nn.Module, list[Noted]] = {}

        def note(module: nn.Module, inputs: object = None) -> None:  # noqa: ARG001  # torch gives both
            if module not in before:
                before[module] = noted_buffers(module)

        for module in self.known:
            note(module)
        handle = None if self.whole else register_module_forward_pre_hook(note)
        try:
            yield
        finally:
            if handle:
                handle.remove()
        changed = {module for module, buffers in before.items() if has_changed(module, buffers, self.changing)}
        self.buffers = {(module, name): copy for module in changed for name, _, _, copy in before[module]}
        self.over = True

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Starts from the state that was noted; afterwards all is as it is now."""
        buffers = {(module, name): getattr(module, name) for module, name in self.buffers}
        for (module, name), buffer in self.buffers.items():
            setattr(module, name, buffer.clone())
        try:
            with python_random_restored():
                random.setstate(self.random)
                np.random.set_state(self.numpy)  # noqa: NPY002  # what embedders draw from
                yield
        finally:
            for (module, name), buffer in buffers.items():
                setattr(module, name, buffer)


@contextmanager
def python_random_restored() -> Iterator[None]:
    """Afterwards Python's and numpy's random numbers go on from where they are now."""
    now = random.getstate(), np.random.get_state()  # noqa: NPY002  # what embedders draw from
    try:
        yield
    finally:
        random.setstate(now[0])
        np.random.set_state(now[1])  # noqa: NPY002  # what embedders draw from


def known_modules(embedder: Any) -> list[nn.Module]:
    """Modules of an embedder that is one, of the owner of a method, or that a function holds."""
    if isinstance(embedder, nn.Module):
        return list(embedder.modules())
    held = [getattr(embedder, "__self__", None)]
    if isinstance(embedder, partial):
        held += [embedder.func, *embedder.args, *embedder.keywords.values()]
    held += [cell.cell_contents for cell in getattr(embedder, "__closure__", None) or () if cell != CellType()]
    owners = [getattr(thing, "__self__", thing) for thing in held]
    return [module for owner in owners if isinstance(owner, nn.Module) for module in owner.modules()]


def noted_buffers(module: nn.Module) -> list[Noted]:
    """A module's own buffers as they are."""
    named = list(module.named_buffers(recurse=False))
    for name, buffer in named:
        if is_lazy(buffer):
            raise ValueError(
                f"{type(module).__name__} has yet to learn the shape of {name}: run a batch through it first."
            )
    return [(name, buffer, buffer._version, buffer.clone()) for name, buffer in named]


def has_changed(module: nn.Module, buffers: list[Noted], changing: set[nn.Module] | None) -> bool:
    """Whether a pass has changed a module's buffers."""
    if isinstance(module, _NormBase) and module.training:
        return bool(buffers)  # torch updates running statistics without counting a version
    if changing is not None and module in changing:
        return True
    return any(
        getattr(module, name) is not buffer
        or buffer._version != version
        or (changing is None and not torch.equal(buffer, copy))
        for name, buffer, version, copy in buffers
    )
