"""Saves and restores the global random generators of Python, numpy and torch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]
"""States of the global generators, of types that `torch.load(weights_only=True)` accepts."""


def get_random_state(with_torch: bool = True, device: torch.device | None = None) -> RandomState:
    """The states of the global generators of Python and numpy, and on request of torch and of a CUDA device.

    Args:
        with_torch: whether to include the CPU generator of torch.
        device: the CUDA device whose generator to include; None, or another kind of device: none.
    """
    name, key, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # the generator that users draw from
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(key).tolist(), position, has_gauss, cached),
        "torch": torch.get_rng_state() if with_torch else None,
        "device": torch.cuda.get_rng_state(device) if device is not None and device.type == "cuda" else None,
    }


def set_random_state(state: RandomState, device: torch.device | None = None) -> None:
    """Restores the generators that a state includes.

    Args:
        state: what `get_random_state` returned.
        device: the CUDA device whose generator to restore, if the state includes one.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, key, position, has_gauss, cached = state["numpy"]
    numbers = np.array(key, dtype=np.uint32)
    np.random.set_state((name, numbers, position, has_gauss, cached))  # noqa: NPY002  # the generator that users draw from
    if state["torch"] is not None:
        torch.set_rng_state(state["torch"].cpu())
    if state["device"] is not None and device is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["device"].cpu(), device)


@contextmanager
def random_state_restored(with_torch: bool = True) -> Iterator[None]:
    """Context manager: restores the generators on exit to their states on entry."""
    state = get_random_state(with_torch)
    try:
        yield
    finally:
        set_random_state(state)
