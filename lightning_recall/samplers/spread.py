"""Epochs that spread the packs of every class evenly over their batches."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_recall.samplers.epochs import EpochSeed
from lightning_recall.samplers.pack_counts import PackCounts


def max_num_batches(
    pack_counts: NDArray[np.int64], packs_per_batch: int, per_batch: NDArray[np.int64] | int = 1
) -> int:
    """Largest number of batches of `packs_per_batch` packs, if no pack is drawn twice.

    Args:
        pack_counts: (C,) number of packs of each class; a pack is `samples_per_class` images of one class.
        packs_per_batch: packs in a batch.
        per_batch: maximum number of packs of a class in a batch, per class (C,) or one value for all; 1: no class
            twice in a batch.
    """
    num_batches = int(pack_counts.sum()) // packs_per_batch
    while (drawn := int(np.minimum(pack_counts, per_batch * num_batches).sum())) < num_batches * packs_per_batch:
        num_batches = drawn // packs_per_batch
    return num_batches


def min_num_batches(pack_counts: NDArray[np.int64], packs_per_batch: int, per_batch: NDArray[np.int64]) -> int:
    """Smallest number of batches of `packs_per_batch` packs that contain every pack at least once.

    `pack_counts` (C,) is the number of packs of each class.
    """
    return max(-(-int(pack_counts.sum()) // packs_per_batch), int((-(-pack_counts // np.maximum(per_batch, 1))).max()))


@dataclass(frozen=True)
class SpreadEpoch:
    """A sequence of packs, class by class; the pack at position p goes to batch p % length.

    So a class appears at most once in a batch if it has at most `length` packs.

    Attributes:
        classes: (C,) classes in the order of the sequence.
        ends: (C,) position after each class's last pack.
        counts: (C,) number of each class's packs in the sequence.
        first_pack: (C,) number of packs of each class that were drawn before; its packs start at this index.
        length: number of batches.
        packs_per_batch: packs in a batch.
    """

    classes: NDArray[np.int64]
    ends: NDArray[np.int64]
    counts: NDArray[np.int64]
    first_pack: NDArray[np.int64]
    length: int
    packs_per_batch: int

    def batch(self, batch_index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The class of each pack in a batch, and the index of the pack within its class, both (packs_per_batch,).

        Several packs of one class in a batch have consecutive indices.
        """
        positions = batch_index + self.length * np.arange(self.packs_per_batch)
        in_batch = np.searchsorted(self.ends, positions, side="right")  # (packs_per_batch,) positions in `classes`
        # Packs of a class go to the batches in turn: pack r * length + c of the class goes to row r of column c. Each
        # column is one batch. Indices run down the columns, so that packs in one batch have consecutive indices.
        row, column = np.divmod(positions - self.ends[in_batch] + self.counts[in_batch], self.length)
        full_rows, rest = np.divmod(self.counts[in_batch], self.length)  # the first `rest` columns have one pack more
        return self.classes[in_batch], self.first_pack[in_batch] + full_rows * column + np.minimum(column, rest) + row


class SpreadPlan:
    """Epochs with as many batches as possible and no pack twice; packs that do not fill a batch are dropped.

    Args:
        pack_counts: number of packs of each class.
        packs_per_batch: packs in a batch.
    """

    def __init__(self, pack_counts: PackCounts, packs_per_batch: int) -> None:
        self.pack_counts = pack_counts
        self.packs_per_batch = packs_per_batch
        self._length = max_num_batches(pack_counts.per_epoch, packs_per_batch, pack_counts.per_batch)

    def length(self, seed: EpochSeed) -> int:
        """Number of batches of every epoch."""
        return self._length

    def draw(self, seed: EpochSeed, rng: np.random.Generator) -> SpreadEpoch:
        """Draws an epoch with the generator that shuffled the images."""
        order = rng.permutation(len(self.pack_counts.per_epoch))
        counts = np.minimum(self.pack_counts.per_epoch, self.pack_counts.per_batch * self._length)[order]
        return SpreadEpoch(order, np.cumsum(counts), counts, np.zeros_like(counts), self._length, self.packs_per_batch)


class FilledPlan:
    """Epochs with as few batches as possible that contain every pack; repeated packs fill these batches.

    Args:
        pack_counts: number of packs of each class.
        packs_per_batch: packs in a batch.
    """

    def __init__(self, pack_counts: PackCounts, packs_per_batch: int) -> None:
        self.pack_counts = pack_counts
        self.packs_per_batch = packs_per_batch
        self._length = min_num_batches(pack_counts.per_epoch, packs_per_batch, pack_counts.per_batch)

    def length(self, seed: EpochSeed) -> int:
        """Number of batches of every epoch."""
        return self._length

    def draw(self, seed: EpochSeed, rng: np.random.Generator) -> SpreadEpoch:
        """Draws an epoch with the generator that shuffled the images."""
        return filled_epoch(self.pack_counts, np.zeros_like(self.pack_counts.per_epoch), self.packs_per_batch, rng)


def filled_epoch(
    pack_counts: PackCounts, drawn: NDArray[np.int64], packs_per_batch: int, rng: np.random.Generator
) -> SpreadEpoch:
    """Draws the packs that are not `drawn` (C,) yet, and fills the batches with repeated packs."""
    length = min_num_batches(pack_counts.per_epoch - drawn, packs_per_batch, pack_counts.per_batch)
    counts = filled_counts(pack_counts, drawn, length, packs_per_batch, rng)
    order = rng.permutation(len(counts))
    return SpreadEpoch(order, np.cumsum(counts[order]), counts[order], drawn[order], length, packs_per_batch)


def filled_counts(
    pack_counts: PackCounts, drawn: NDArray[np.int64], length: int, packs_per_batch: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Number of packs per class (C,) that fill `length` batches.

    Every class's packs are repeated as a whole several times, then some of them once more.
    """

    def counts_after(passes: int) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = np.minimum(pack_counts.per_epoch * passes - drawn, pack_counts.per_batch * length)
        return counts

    low, high = 1, length * packs_per_batch + 2  # binary search for the largest number of passes that fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if counts_after(middle).sum() <= length * packs_per_batch else (low, middle)
    counts, next_pass = counts_after(low), counts_after(high) - counts_after(low)
    missing = length * packs_per_batch - int(counts.sum())
    added = next_pass * missing // max(int(next_pass.sum()), 1)  # (C,) proportional to the next pass, rounded down
    rounded_up = rng.permutation(np.flatnonzero(added < next_pass))[: missing - int(added.sum())]
    counts += added
    counts[rounded_up] += 1
    return counts
