"""How many groups of `samples_per_class` images each class gives to an epoch, and to a batch at most."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

SmallClasses = Literal["error", "drop", "repeat"]
Tail = Literal["drop", "fill"]
FewClasses = Literal["error", "repeat"]


class PackCounts(NamedTuple):
    """Groups of each class, both (C,), 0 for classes that are never drawn."""

    per_epoch: NDArray[np.int64]  # that an epoch draws, if it can
    per_batch: NDArray[np.int64]  # at most


def pack_counts(
    sizes: NDArray[np.int64],
    samples_per_class: int,
    num_groups: int,
    small_classes: SmallClasses,
    tail: Tail,
    few_classes: FewClasses,
) -> PackCounts:
    """Counts the groups of classes of `sizes` (C,) images, for batches of `num_groups` groups.

    Raises:
        ValueError: if a batch cannot be filled in the way asked for.
    """
    usable = usable_classes(sizes, samples_per_class, small_classes)
    different = sizes // samples_per_class  # (C,) groups without an image in common
    if small_classes == "repeat":
        different = np.maximum(different, 1)
    per_batch = np.minimum(different, 1)
    if usable < num_groups:
        refuse_few_classes(usable, int(different.sum()), samples_per_class, num_groups, small_classes, few_classes)
        different = different * -(-num_groups // different.sum())  # how often a batch has to repeat an image
        most = next(most for most in range(2, num_groups) if np.minimum(different, most).sum() >= num_groups)
        per_batch = np.minimum(different, most)  # as even as it can be; below num_groups, so of 2 classes or more
    if tail == "fill":
        return PackCounts(np.where(different > 0, -(-sizes // samples_per_class), 0), per_batch)
    return PackCounts(different, per_batch)


def usable_classes(sizes: NDArray[np.int64], samples_per_class: int, small_classes: SmallClasses) -> int:
    """Number of classes that can be drawn.

    Raises:
        ValueError: if there are small classes and they are refused, or fewer than 2 classes are left.
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
            f"A batch needs 2 classes at least, but only {usable} of {len(sizes)} {have} "
            f"samples_per_class={samples_per_class} images: lower samples_per_class."
        )
    return usable


def refuse_few_classes(
    usable: int,
    different: int,
    samples_per_class: int,
    num_groups: int,
    small_classes: SmallClasses,
    few_classes: FewClasses,
) -> None:
    """Raises ValueError if a batch may not have two groups of a class, or would have to repeat an image and may not."""
    if few_classes == "error":
        raise ValueError(
            f"A batch needs batch_size / samples_per_class = {num_groups} classes, but only {usable} have "
            f"{samples_per_class} images or more. Lower batch_size to {usable * samples_per_class} or less, raise "
            'samples_per_class, or allow several groups of a class in a batch with few_classes="repeat".'
        )
    if different < num_groups and small_classes != "repeat":
        raise ValueError(
            f"A batch of {num_groups * samples_per_class} would have an image twice: its classes have only {different} "
            f"groups of {samples_per_class} different images. Lower batch_size to {different * samples_per_class} or "
            'less, or allow repeated images with small_classes="repeat".'
        )
