"""What the sampler takes: sizes, options and labels, or an error that says which to change."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_recall.samplers.pack_counts import FewClasses, SmallClasses, Tail

EpochOrder = Literal["longest", "published"]
Labels = Sequence[int] | Sequence[Sequence[int]] | NDArray[np.integer] | Tensor


def check_integer(name: str, value: Any, least: int) -> None:
    """Raises ValueError unless a number is an integer, and large enough."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be an integer, at least {least}, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_sizes(batch_size: int, samples_per_class: int) -> None:
    """Raises ValueError unless a batch can be cut into groups of two images or more, from two classes or more."""
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
    """Raises ValueError for a value that an option does not have, or options that contradict each other."""
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


def label_array(labels: Labels) -> NDArray[np.integer]:
    """Labels as an array (N,) or (N, 2).

    Raises:
        ValueError: if they have another shape, or are no integers of 64 bits.
    """
    try:
        array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    except (TypeError, ValueError) as error:  # of lists of different lengths, and of bfloat16
        raise ValueError(f"labels must be integers of shape (N,) or (N, 2): {error}.") from error
    if array.shape[1:] not in {(), (2,)} or not array.shape or not np.issubdtype(array.dtype, np.integer):
        first = f", the first {array.flat[0]!r}" if array.size else ""
        raise ValueError(f"labels must be integers of shape (N,) or (N, 2), got {array.dtype} {array.shape}{first}.")
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"labels must be below 2**63, got {array.max()}.")
    return array


def super_class_of(
    labels: NDArray[np.integer], order: NDArray[np.int32], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Number from 0 of each class's super-class (C,), given the rows class by class (N,) and the classes' sizes (C,).

    Raises:
        ValueError: if `labels` are not (N, 2), or a class is in two super-classes.
    """
    if labels.ndim == 1:
        raise ValueError("super_classes needs labels of shape (N, 2): the class and the super-class of each item.")
    sorted_labels = labels[order]  # (N, 2)
    first = sorted_labels[np.cumsum(sizes) - sizes]  # (C, 2)
    wrong = np.flatnonzero(sorted_labels[:, 1] != np.repeat(first[:, 1], sizes))
    if len(wrong):
        one, other = sorted_labels[wrong[0]], first[np.searchsorted(np.cumsum(sizes), wrong[0], side="right")]
        raise ValueError(f"Class {one[0]} is in super-class {other[1]} and in {one[1]}: each needs one of its own.")
    return np.unique(first[:, 1], return_inverse=True)[1]


def check_super_classes(super_classes: Any, super_of: NDArray[np.int64], num_classes: int) -> None:
    """Raises ValueError for more super-classes in a batch than it has classes, or than there are."""
    most = min(num_classes, len(np.unique(super_of)))
    if not isinstance(super_classes, (int, np.integer)) or not 1 <= super_classes <= most:
        raise ValueError(
            f"super_classes must be None or from 1 to {most}, the smaller of the classes in a batch ({num_classes}) "
            f"and the super-classes with classes to draw ({len(np.unique(super_of))}), got {super_classes}."
        )
