"""Epochs that spread the packs of every class evenly over their batches."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_recall.samplers.epochs import EpochSeed
from lightning_recall.samplers.pack_counts import PackCounts


def max_num_batches(packs: NDArray[np.int64], num_packs: int, per_batch: NDArray[np.int64] | int = 1) -> int:
    """Largest number of batches of `num_packs` packs, if no pack is drawn twice.

    Args:
        packs: (C,) number of packs of each class; a pack is `samples_per_class` images of one class.
        num_packs: packs in a batch.
        per_batch: maximum number of packs of a class in a batch, per class (C,) or one value for all; 1: no class
            twice in a batch.
    """
    num_batches = int(packs.sum()) // num_packs
    while (drawn := int(np.minimum(packs, per_batch * num_batches).sum())) < num_batches * num_packs:
        num_batches = drawn // num_packs
    return num_batches


def min_num_batches(packs: NDArray[np.int64], num_packs: int, per_batch: NDArray[np.int64]) -> int:
    """Smallest number of batches of `num_packs` packs that contain all `packs` (C,) at least once."""
    return max(-(-int(packs.sum()) // num_packs), int((-(-packs // np.maximum(per_batch, 1))).max()))


@dataclass(frozen=True)
class SpreadEpoch:
    """A sequence of packs, class by class; the pack at position p goes to batch p % length.

    So a class appears at most once in a batch if it has at most `length` packs.

    Attributes:
        classes: (C,) classes in the order of the sequence.
        ends: (C,) position after each class's last pack.
        counts: (C,) number of each class's packs in the sequence.
        first: (C,) index of each class's first pack in this epoch.
        length: number of batches.
        num_packs: packs in a batch.
    """

    classes: NDArray[np.int64]
    ends: NDArray[np.int64]
    counts: NDArray[np.int64]
    first: NDArray[np.int64]
    length: int
    num_packs: int

    def batch(self, batch_index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The class of each pack in a batch, and the index of the pack within its class, both (num_packs,).

        Several packs of one class in a batch have consecutive indices.
        """
        positions = batch_index + self.length * np.arange(self.num_packs)
        in_batch = np.searchsorted(self.ends, positions, side="right")  # (num_packs,) positions in `classes`
        # view a class's packs as a table with `length` columns, one per batch, filled row by row
        row, column = np.divmod(positions - self.ends[in_batch] + self.counts[in_batch], self.length)
        full_rows, rest = np.divmod(self.counts[in_batch], self.length)  # the first `rest` columns have one pack more
        return self.classes[in_batch], self.first[in_batch] + full_rows * column + np.minimum(column, rest) + row


class SpreadPlan:
    """Epochs with as many batches as possible and no pack twice; packs that do not fill a batch are dropped.

    Args:
        packs: number of packs of each class.
        num_packs: packs in a batch.
    """

    def __init__(self, packs: PackCounts, num_packs: int) -> None:
        self.packs = packs
        self.num_packs = num_packs
        self._length = max_num_batches(packs.per_epoch, num_packs, packs.per_batch)

    def length(self, seed: EpochSeed) -> int:
        """Number of batches of every epoch."""
        return self._length

    def draw(self, seed: EpochSeed, rng: np.random.Generator) -> SpreadEpoch:
        """Draws an epoch with the generator that shuffled the images."""
        order = rng.permutation(len(self.packs.per_epoch))
        counts = np.minimum(self.packs.per_epoch, self.packs.per_batch * self._length)[order]
        return SpreadEpoch(order, np.cumsum(counts), counts, np.zeros_like(counts), self._length, self.num_packs)


class FilledPlan:
    """Epochs with as few batches as possible that contain every pack; repeated packs fill these batches.

    Args:
        packs: number of packs of each class.
        num_packs: packs in a batch.
    """

    def __init__(self, packs: PackCounts, num_packs: int) -> None:
        self.packs = packs
        self.num_packs = num_packs
        self._length = min_num_batches(packs.per_epoch, num_packs, packs.per_batch)

    def length(self, seed: EpochSeed) -> int:
        """Number of batches of every epoch."""
        return self._length

    def draw(self, seed: EpochSeed, rng: np.random.Generator) -> SpreadEpoch:
        """Draws an epoch with the generator that shuffled the images."""
        return filled_epoch(self.packs, np.zeros_like(self.packs.per_epoch), self.num_packs, rng)


def filled_epoch(packs: PackCounts, drawn: NDArray[np.int64], num_packs: int, rng: np.random.Generator) -> SpreadEpoch:
    """Draws the packs that are not `drawn` (C,) yet, and fills the batches with repeated packs."""
    length = min_num_batches(packs.per_epoch - drawn, num_packs, packs.per_batch)
    counts = filled_counts(packs, drawn, length, num_packs, rng)
    order = rng.permutation(len(counts))
    return SpreadEpoch(order, np.cumsum(counts[order]), counts[order], drawn[order], length, num_packs)


def filled_counts(
    packs: PackCounts, drawn: NDArray[np.int64], length: int, num_packs: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Number of packs per class (C,) that fill `length` batches: several full passes, then a partial one."""

    def counts_after(passes: int) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = np.minimum(packs.per_epoch * passes - drawn, packs.per_batch * length)
        return counts

    low, high = 1, length * num_packs + 2  # `low` passes fit; `high` do not, unless `per_batch` limits all classes
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if counts_after(middle).sum() <= length * num_packs else (low, middle)
    counts, next_pass = counts_after(low), counts_after(high) - counts_after(low)
    missing = length * num_packs - int(counts.sum())
    added = next_pass * missing // max(int(next_pass.sum()), 1)  # (C,) proportional to the next pass, rounded down
    rounded_up = rng.permutation(np.flatnonzero(added < next_pass))[: missing - int(added.sum())]
    counts += added
    counts[rounded_up] += 1
    return counts
