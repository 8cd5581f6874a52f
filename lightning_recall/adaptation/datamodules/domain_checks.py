"""Checks that two domains fit together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_recall._lightning import rank_zero_warn
from lightning_recall.data.messages import quote
from lightning_recall.random_state import preserve_random_state

MAX_LISTED = 10


def listed(names: Sequence[str]) -> str:
    """Names in quotes, at most ten.

    >>> listed(["cup", "pen"])
    "'cup', 'pen'"
    """
    rest = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(quote, names[:MAX_LISTED])) + rest


def check_same_classes(class_names: Sequence[str], found: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError if a data set has other classes, or the same in another order; names which.

    Args:
        class_names: K names, in the order of the labels.
        found: name of each data set -> its class names.
    """
    if not class_names:
        raise ValueError("class_names is empty: set it to the names of the classes, in the order of the labels.")
    for name, names in found.items():
        unknown = [each for each in names if each not in class_names]
        missing = [each for each in class_names if each not in names]
        if unknown or missing:
            parts = [f"has {listed(unknown)}"] * bool(unknown) + [f"lacks {listed(missing)}"] * bool(missing)
            raise ValueError(
                f"The domains must have the same classes, but {name} {' and '.join(parts)}: expected "
                f"{listed(class_names)}."
            )
        if tuple(names) != tuple(class_names):
            raise ValueError(
                f"The classes of {name} are in another order, {listed(names)}: expected {listed(class_names)}."
            )


def check_labels(name: str, labels: NDArray[np.int64], class_names: Sequence[str], minimum: int) -> None:
    """Raises ValueError unless labels (N,) lie between `minimum` and K - 1.

    Args:
        name: name of the data set, for the error.
        labels: (N,) integers.
        class_names: K names.
        minimum: 0, or -1 where images without labels are allowed.
    """
    wrong = np.flatnonzero((labels < minimum) | (labels >= len(class_names)))
    if len(wrong):
        advice = "" if minimum < 0 else " Only images of the target may lack a label (-1)."
        raise ValueError(
            f"{name}: labels must be from {minimum} to {len(class_names) - 1}, for {len(class_names)} classes; image "
            f"{wrong[0]} has {labels[wrong[0]]}.{advice}"
        )


def check_image(name: str, data: Any, size: int) -> None:
    """Raises ValueError unless the first image of a data set is uint8 of shape (3, size, size)."""
    with preserve_random_state():
        image = data[0][0]
    found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.shape != (3, size, size):
        raise ValueError(
            f"{name}: images must be uint8 tensors of shape (3, {size}, {size}), in both domains, got {found}: "
            "convert grey images to RGB, and resize or crop to one size."
        )


def describe_classes(labels: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """Images of each class, such as "cup 20, pen 31"; warns about classes without an image."""
    counts = np.bincount(labels, minlength=len(class_names))
    missing = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if missing:
        rank_zero_warn(f"No training image of the source is of {listed(missing)}: the network cannot learn this class.")
    pairs = [f"{name} {count:,}" for name, count in zip(class_names, counts, strict=True)]
    return ", ".join(pairs[: 2 * MAX_LISTED]) + (
        f" and {len(pairs) - 2 * MAX_LISTED} more" if len(pairs) > 2 * MAX_LISTED else ""
    )
