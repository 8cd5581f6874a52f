"""Number of packs per class in an epoch, and maximum per batch. A pack is `samples_per_class` images of one class."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

SmallClasses = Literal["error", "drop", "repeat"]
Tail = Literal["drop", "fill"]
FewClasses = Literal["error", "repeat"]


class PackCounts(NamedTuple):
    """Number of packs of each class in an epoch and in a batch, both (C,); 0 for unused classes."""

    per_epoch: NDArray[np.int64]  # maximum; with tail="fill", minimum
    per_batch: NDArray[np.int64]  # maximum


def count_packs(
    sizes: NDArray[np.int64],
    samples_per_class: int,
    packs_per_batch: int,
    small_classes: SmallClasses,
    tail: Tail,
    few_classes: FewClasses,
) -> PackCounts:
    """Computes the number of packs of each class, given the class sizes (C,) and the packs in a batch.

    Raises:
        ValueError: if a batch cannot be filled with these options.
    """
    usable = num_usable_classes(sizes, samples_per_class, small_classes)
    num_disjoint_packs = sizes // samples_per_class  # (C,) no image is in two packs
    if small_classes == "repeat":
        num_disjoint_packs = np.maximum(num_disjoint_packs, 1)
    per_epoch, per_batch = num_disjoint_packs, np.minimum(num_disjoint_packs, 1)
    if usable < packs_per_batch:
        total = int(num_disjoint_packs.sum())
        check_few_classes(usable, total, samples_per_class, packs_per_batch, small_classes, few_classes)
        per_epoch = num_disjoint_packs * -(-packs_per_batch // total)  # a batch may draw each pack this many times
        # smallest number of packs per class that suffices to fill a batch; less than packs_per_batch, because a batch
        # needs 2 classes
        limits = range(2, packs_per_batch)
        limit = next(limit for limit in limits if np.minimum(per_epoch, limit).sum() >= packs_per_batch)
        per_batch = np.minimum(per_epoch, limit)
    if tail == "fill":
        return PackCounts(np.where(per_epoch > 0, -(-sizes // samples_per_class), 0), per_batch)
    return PackCounts(per_epoch, per_batch)


def num_usable_classes(sizes: NDArray[np.int64], samples_per_class: int, small_classes: SmallClasses) -> int:
    """Number of classes that can be drawn.

    Raises:
        ValueError: if there are small classes and `small_classes` is "error", or fewer than 2 classes are left.
    """
    small = int((sizes < samples_per_class).sum())
    if small and small_classes == "error":
        verb = "has" if small == 1 else "have"
        raise ValueError(
            f"{small} of {len(sizes)} classes {verb} fewer than samples_per_class={samples_per_class} images. Lower "
            'samples_per_class, leave these classes out with small_classes="drop", or repeat their images with '
            'small_classes="repeat".'
        )
    usable = len(sizes) - (small if small_classes == "drop" else 0)
    if usable < 2:
        verb = "has" if usable == 1 else "have"
        raise ValueError(
            f"A batch needs at least 2 classes, but only {usable} of {len(sizes)} {verb} "
            f"samples_per_class={samples_per_class} images: lower samples_per_class."
        )
    return usable


def check_few_classes(
    usable: int,
    num_disjoint_packs: int,
    samples_per_class: int,
    packs_per_batch: int,
    small_classes: SmallClasses,
    few_classes: FewClasses,
) -> None:
    """Raises ValueError if a batch needs two packs of a class, or repeated images, and the options forbid it."""
    if few_classes == "error":
        raise ValueError(
            f"A batch needs batch_size / samples_per_class = {packs_per_batch} classes, but only {usable} have at "
            f"least {samples_per_class} images. Lower batch_size to {usable * samples_per_class} or less, raise "
            f"samples_per_class, or allow several packs of {samples_per_class} images of a class in a batch with "
            'few_classes="repeat".'
        )
    if num_disjoint_packs < packs_per_batch and small_classes != "repeat":
        raise ValueError(
            f"A batch of {packs_per_batch * samples_per_class} would repeat an image: its classes have only "
            f"{num_disjoint_packs} packs of {samples_per_class} different images. Lower batch_size to "
            f"{num_disjoint_packs * samples_per_class} or less, or allow repeated images with "
            'small_classes="repeat".'
        )
