"""Holds out random images of a domain."""

from typing import Any

import numpy as np

from lightning_recall.data.messages import pluralize


def check_fraction(name: str, fraction: Any) -> None:
    """Raises ValueError unless a fraction is a number of at least 0 and below 1."""
    if isinstance(fraction, bool) or not isinstance(fraction, int | float | np.number) or not 0 <= fraction < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {fraction!r}.")


def hold_out(
    data: Any, fraction: float, seed: int, stratified: bool = True, name: str = "val_fraction"
) -> tuple[Any, Any]:
    """Splits images at random; both parts keep the order of the images.

    Args:
        data: a data set with `labels` (N,) and `select`.
        fraction: fraction of the images in the second part, above 0 and below 1.
        seed: random seed.
        stratified: whether the fraction holds for each class, rounded, but at least one image; a class with a single
            image stays in the first part. False does not look at the labels.
        name: name of the setting, for the error.

    Returns:
        The first part, and the held-out part.

    Raises:
        ValueError: if no image is held out.
    """
    rng = np.random.default_rng(seed)
    groups = np.asarray(data.labels) if stratified else np.zeros(len(data), dtype=np.int64)
    is_held_out = np.zeros(len(data), dtype=bool)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        is_held_out[members[: min(max(1, round(fraction * len(members))), len(members) - 1)]] = True
    if not is_held_out.any():
        raise ValueError(
            f"{name}={fraction}: {pluralize(len(data), 'image')} are too few to hold out any, since each class keeps "
            f"one: add images, or set {name} to 0."
        )
    return data.select(~is_held_out), data.select(is_held_out)
