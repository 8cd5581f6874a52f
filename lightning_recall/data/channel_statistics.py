"""Mean and standard deviation of each channel, by which images are normalised."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def channel_values(given: Sequence[float] | None, of_network: Any, default: Sequence[float]) -> tuple[float, ...]:
    """One number for each channel: those given, or else those of the network if it has such numbers, or the default."""
    known = of_network if isinstance(of_network, Sequence | Tensor) else default
    return tuple(float(value) for value in (known if given is None else given))


def check_normalization(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises ValueError unless mean and std hold equally many finite numbers, at least one, and std is above 0."""
    if not mean or len(mean) != len(std):
        raise ValueError(f"mean and std must hold one number for each channel, got {tuple(mean)} and {tuple(std)}.")
    if not all(math.isfinite(value) for value in mean):
        raise ValueError(f"mean must hold finite numbers, got {tuple(mean)}.")
    if not all(0 < value < math.inf for value in std):
        raise ValueError(f"std must hold finite numbers above 0, got {tuple(std)}.")
