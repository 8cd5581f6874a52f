"""Saves and restores the global random generators of Python, NumPy and torch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]
"""States of the global generators. All values can be loaded by `torch.load(weights_only=True)`."""


def get_random_state(with_torch: bool = True, device: torch.device | None = None) -> RandomState:
    """The states of the global generators of Python and NumPy, and optionally those of torch and of a CUDA device.

    Args:
        with_torch: whether to include the CPU generator of torch.
        device: CUDA device whose generator is included. For None or a CPU, no device generator is included.
    """
    name, key, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  # the generator that users draw from
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(key).tolist(), position, has_gauss, cached),
        "torch": torch.get_rng_state() if with_torch else None,
        "device": torch.cuda.get_rng_state(device) if device is not None and device.type == "cuda" else None,
    }


def set_random_state(state: RandomState, device: torch.device | None = None) -> None:
    """Restores the generators whose states are included in `state`.

    Args:
        state: a state that `get_random_state` returned.
        device: CUDA device whose generator is restored, if the state includes one.
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
def preserve_random_state(with_torch: bool = True, device: torch.device | None = None) -> Iterator[None]:
    """Context manager that restores, on exit, the states that the generators had on entry: see `get_random_state`."""
    state = get_random_state(with_torch, device)
    try:
        yield
    finally:
        set_random_state(state, device)
