"""Validates the sampler's arguments."""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_recall.checks import check_integer
from lightning_recall.samplers.pack_counts import FewClasses, SmallClasses, Tail

EpochOrder = Literal["longest", "published"]


def check_sizes(batch_size: int, samples_per_class: int) -> None:
    """Raises ValueError unless a batch has at least two classes with at least two images each."""
    check_integer("samples_per_class", samples_per_class, 2)  # so that each image has a positive
    check_integer("batch_size", batch_size, 1)
    if batch_size < 2 * samples_per_class or batch_size % samples_per_class:
        raise ValueError(
            f"batch_size must be a multiple of samples_per_class={samples_per_class} and hold at least 2 classes, "
            f"got {batch_size}."
        )


def check_options(
    small_classes: SmallClasses,
    tail: Tail,
    few_classes: FewClasses,
    epoch_order: EpochOrder,
    super_classes: int | None,
) -> None:
    """Raises ValueError for invalid option values or incompatible options."""
    for name, value, kind in (
        ("small_classes", small_classes, SmallClasses),
        ("tail", tail, Tail),
        ("few_classes", few_classes, FewClasses),
        ("epoch_order", epoch_order, EpochOrder),
    ):
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(kind)))}, got {value!r}.")
    others = small_classes == "repeat", tail == "fill", few_classes == "repeat", super_classes is not None
    if epoch_order == "published" and any(others):
        raise ValueError(
            'epoch_order="published" needs small_classes="error" or "drop", tail="drop", few_classes="error" and '
            f"super_classes=None, got {small_classes!r}, {tail!r}, {few_classes!r} and {super_classes}."
        )


def super_class_ids_of(
    labels: NDArray[np.integer], order: NDArray[np.int32], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Index (C,) of each class's super-class, from 0.

    Args:
        labels: (N, 2) class and super-class of each item.
        order: (N,) indices of the items, sorted by class.
        sizes: (C,) number of items of each class.

    Raises:
        ValueError: if `labels` are not (N, 2), or if a class has two super-classes.
    """
    if labels.ndim == 1:
        raise ValueError("super_classes needs labels of shape (N, 2): the class and the super-class of each item.")
    sorted_labels = labels[order]  # (N, 2)
    first = sorted_labels[np.cumsum(sizes) - sizes]  # (C, 2)
    wrong = np.flatnonzero(sorted_labels[:, 1] != np.repeat(first[:, 1], sizes))
    if len(wrong):
        one, other = sorted_labels[wrong[0]], first[np.searchsorted(np.cumsum(sizes), wrong[0], side="right")]
        raise ValueError(
            f"Class {one[0]} belongs to super-classes {other[1]} and {one[1]}; each class must belong to exactly one."
        )
    return np.unique(first[:, 1], return_inverse=True)[1]


def check_super_classes(super_classes: Any, super_class_ids: NDArray[np.int64], packs_per_batch: int) -> None:
    """Raises ValueError if `super_classes` exceeds the number of classes in a batch or the number of super-classes.

    Args:
        super_classes: number of super-classes in a batch.
        super_class_ids: (C,) super-class of each class that can be drawn.
        packs_per_batch: number of classes in a batch.
    """
    num_super_classes = len(np.unique(super_class_ids))
    maximum = min(packs_per_batch, num_super_classes)
    if not isinstance(super_classes, (int, np.integer)) or not 1 <= super_classes <= maximum:
        raise ValueError(
            f"super_classes must be None or from 1 to {maximum}: a batch has {packs_per_batch} classes, and "
            f"{num_super_classes} super-classes have usable classes, got {super_classes}."
        )
