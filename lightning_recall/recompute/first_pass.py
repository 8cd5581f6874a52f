"""The state in which a chunk's first pass started, so that its recomputation starts there too and leaves no trace."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook


class FirstPass:
    """Where a chunk's first pass started: the state that its recomputation must find again.

    torch's own random numbers are `checkpoint`'s business.
    """

    def __init__(self, encoder: Callable[[Any], Any]) -> None:
        owner = encoder if isinstance(encoder, nn.Module) else getattr(encoder, "__self__", None)
        self.owner = owner if isinstance(owner, nn.Module) else None
        self.over = False
        self.buffers: dict[tuple[nn.Module, str], Tensor] = {}  # as they were, those that the pass changed

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Notes the random state and the buffers as they are; to be held during the first pass."""
        self.random, self.numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # what encoders draw from
        before: dict[nn.Module, list[tuple[str, Tensor, int, Tensor]]] = {}

        def note(module: nn.Module, inputs: object = None) -> None:  # noqa: ARG001  # torch gives both
            if module not in before:
                named = module.named_buffers(recurse=False)
                before[module] = [(name, buffer, buffer._version, buffer.clone()) for name, buffer in named]

        handle = None
        if self.owner is None:  # a function may call any module
            handle = register_module_forward_pre_hook(note)
        else:
            for module in self.owner.modules():
                note(module)
        try:
            yield
        finally:
            if handle:
                handle.remove()
        self.buffers = {
            (module, name): copy
            for module, buffers in before.items()
            if changed(module, buffers)
            for name, _, _, copy in buffers
        }
        self.over = True

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Starts from the state that was noted; afterwards all is as it is now."""
        now = random.getstate(), np.random.get_state()  # noqa: NPY002  # what encoders draw from
        buffers = {(module, name): getattr(module, name) for module, name in self.buffers}
        random.setstate(self.random)
        np.random.set_state(self.numpy)  # noqa: NPY002  # what encoders draw from
        for (module, name), buffer in self.buffers.items():
            setattr(module, name, buffer.clone())
        try:
            yield
        finally:
            random.setstate(now[0])
            np.random.set_state(now[1])  # noqa: NPY002  # what encoders draw from
            for (module, name), buffer in buffers.items():
                setattr(module, name, buffer)


def changed(module: nn.Module, buffers: list[tuple[str, Tensor, int, Tensor]]) -> bool:
    """Whether a pass has changed a module's buffers, noted as name, buffer, version and copy."""
    if isinstance(module, _NormBase) and module.training:
        return True  # torch updates running statistics without counting a version
    return any(
        getattr(module, name) is not buffer or buffer._version != version for name, buffer, version, _ in buffers
    )
