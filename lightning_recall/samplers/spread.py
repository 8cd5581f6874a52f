"""Epochs that spread the groups of every class evenly over their batches."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_recall.samplers.pack_counts import PackCounts


def most_batches(groups: NDArray[np.int64], num_classes: int, per_batch: NDArray[np.int64] | int = 1) -> int:
    """Largest number of batches of `num_classes` groups.

    Args:
        groups: (C,) how many groups each class has.
        num_classes: groups in a batch.
        per_batch: most groups of a class in a batch, of each class (C,) or of all; 1: no class twice.
    """
    most = int(groups.sum()) // num_classes
    while (drawn := int(np.minimum(groups, per_batch * most).sum())) < most * num_classes:
        most = drawn // num_classes
    return most


def fewest_batches(groups: NDArray[np.int64], num_groups: int, per_batch: NDArray[np.int64]) -> int:
    """Smallest number of batches of `num_groups` groups that draw all `groups` (C,), not counting what fills them."""
    return max(-(-int(groups.sum()) // num_groups), int((-(-groups // np.maximum(per_batch, 1))).max()))


@dataclass(frozen=True)
class SpreadEpoch:
    """An epoch as a row of groups, those of a class side by side: place p of the row is in batch p % length.

    A class with no more groups than there are batches is so never twice in a batch.

    Attributes:
        classes: (C,) in the order of the row.
        ends: (C,) places at which they end.
        counts: (C,) groups that they have in the row.
        first: (C,) number of the first of these groups.
        length: batches.
        num_groups: groups in a batch.
    """

    classes: NDArray[np.int64]
    ends: NDArray[np.int64]
    counts: NDArray[np.int64]
    first: NDArray[np.int64]
    length: int
    num_groups: int

    def batch(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Classes of a batch's groups, and the number of each group in its class, both (num_groups,).

        Groups that a class has in one batch have numbers that follow one another.
        """
        places = number + self.length * np.arange(self.num_groups)
        at = np.searchsorted(self.ends, places, side="right")
        row, column = np.divmod(places - self.ends[at] + self.counts[at], self.length)
        whole, rest = np.divmod(self.counts[at], self.length)  # the first `rest` columns have one group more
        return self.classes[at], self.first[at] + whole * column + np.minimum(column, rest) + row


def longest_epoch(groups: PackCounts, length: int, num_groups: int, rng: np.random.Generator) -> SpreadEpoch:
    """No group is drawn twice; what does not fill a batch is left out."""
    order = rng.permutation(len(groups.per_epoch))
    counts = np.minimum(groups.per_epoch, groups.per_batch * length)[order]
    return SpreadEpoch(order, np.cumsum(counts), counts, np.zeros_like(counts), length, num_groups)


def filled_epoch(
    groups: PackCounts, drawn: NDArray[np.int64], num_groups: int, rng: np.random.Generator
) -> SpreadEpoch:
    """All groups are drawn that are not `drawn` (C,) yet; what is missing in the batches is drawn once more."""
    length = fewest_batches(groups.per_epoch - drawn, num_groups, groups.per_batch)
    counts = filled_counts(groups, drawn, length, num_groups, rng)
    order = rng.permutation(len(counts))
    return SpreadEpoch(order, np.cumsum(counts[order]), counts[order], drawn[order], length, num_groups)


def filled_counts(
    groups: PackCounts, drawn: NDArray[np.int64], length: int, num_groups: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Groups (C,) to draw of each class to fill `length` batches: as many passes over the images as go, then a part."""

    def after(passes: int) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = np.minimum(groups.per_epoch * passes - drawn, groups.per_batch * length)
        return counts

    low, high = 1, length * num_groups + 2  # passes that fit; passes that do not, unless no class may be drawn more
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if after(middle).sum() <= length * num_groups else (low, middle)
    counts, more = after(low), after(high) - after(low)
    missing = length * num_groups - int(counts.sum())
    part = more * missing // max(int(more.sum()), 1)  # (C,) each class's part, rounded down
    rounded_up = rng.permutation(np.flatnonzero(part < more))[: missing - int(part.sum())]
    counts += part
    counts[rounded_up] += 1
    return counts
