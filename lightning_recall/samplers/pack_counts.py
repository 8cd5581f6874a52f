"""Number of packs per class: in an epoch, and at most in a batch. A pack is `samples_per_class` images of one class."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

SmallClasses = Literal["error", "drop", "repeat"]
Tail = Literal["drop", "fill"]
FewClasses = Literal["error", "repeat"]


class PackCounts(NamedTuple):
    """Number of packs of each class, both (C,); 0 for unused classes."""

    per_epoch: NDArray[np.int64]  # maximum per epoch
    per_batch: NDArray[np.int64]  # maximum per batch


def pack_counts(
    sizes: NDArray[np.int64],
    samples_per_class: int,
    num_packs: int,
    small_classes: SmallClasses,
    tail: Tail,
    few_classes: FewClasses,
) -> PackCounts:
    """Counts the packs of classes of `sizes` (C,) images, for batches of `num_packs` packs.

    Raises:
        ValueError: if a batch cannot be filled with these options.
    """
    usable = usable_classes(sizes, samples_per_class, small_classes)
    disjoint = sizes // samples_per_class  # (C,) packs without a common image
    if small_classes == "repeat":
        disjoint = np.maximum(disjoint, 1)
    per_batch = np.minimum(disjoint, 1)
    if usable < num_packs:
        check_few_classes(usable, int(disjoint.sum()), samples_per_class, num_packs, small_classes, few_classes)
        disjoint = disjoint * -(-num_packs // disjoint.sum())  # a batch may draw each pack this often
        most = next(most for most in range(2, num_packs) if np.minimum(disjoint, most).sum() >= num_packs)
        per_batch = np.minimum(disjoint, most)  # the smallest maximum that fills a batch; leaves 2 classes or more
    if tail == "fill":
        return PackCounts(np.where(disjoint > 0, -(-sizes // samples_per_class), 0), per_batch)
    return PackCounts(disjoint, per_batch)


def usable_classes(sizes: NDArray[np.int64], samples_per_class: int, small_classes: SmallClasses) -> int:
    """Number of classes that can be drawn.

    Raises:
        ValueError: if there are small classes and `small_classes` is "error", or fewer than 2 classes are left.
    """
    small = int((sizes < samples_per_class).sum())
    if small and small_classes == "error":
        have = "has" if small == 1 else "have"
        raise ValueError(
            f"{small} of {len(sizes)} classes {have} fewer than samples_per_class={samples_per_class} images. Lower "
            'samples_per_class, leave these classes out with small_classes="drop", or repeat their images with '
            'small_classes="repeat".'
        )
    usable = len(sizes) - (small if small_classes == "drop" else 0)
    if usable < 2:
        have = "has" if usable == 1 else "have"
        raise ValueError(
            f"A batch needs at least 2 classes, but only {usable} of {len(sizes)} {have} "
            f"samples_per_class={samples_per_class} images: lower samples_per_class."
        )
    return usable


def check_few_classes(
    usable: int,
    disjoint: int,
    samples_per_class: int,
    num_packs: int,
    small_classes: SmallClasses,
    few_classes: FewClasses,
) -> None:
    """Raises ValueError if a batch needs two packs of a class, or repeated images, and the options forbid it."""
    if few_classes == "error":
        raise ValueError(
            f"A batch needs batch_size / samples_per_class = {num_packs} classes, but only {usable} have at least "
            f"{samples_per_class} images. Lower batch_size to {usable * samples_per_class} or less, raise "
            f"samples_per_class, or allow several packs of {samples_per_class} images of a class in a batch with "
            'few_classes="repeat".'
        )
    if disjoint < num_packs and small_classes != "repeat":
        raise ValueError(
            f"A batch of {num_packs * samples_per_class} would repeat an image: its classes have only {disjoint} "
            f"packs of {samples_per_class} different images. Lower batch_size to {disjoint * samples_per_class} or "
            'less, or allow repeated images with small_classes="repeat".'
        )
