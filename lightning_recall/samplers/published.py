"""Epochs in the order of the official code of the Recall@k surrogate loss."""

from dataclasses import dataclass
from heapq import heapreplace

import numpy as np
from numpy.typing import NDArray

from lightning_recall.samplers.epochs import EpochSeed


@dataclass(frozen=True)
class PublishedEpoch:
    """Each class is in consecutive batches until its images are used up; then the next class takes its slot.

    Attributes:
        classes: (C,) classes in the order in which they are drawn.
        starts: (C,) index of each class's first batch, non-decreasing.
        stops: (C,) index of the batch after each class's last one.
        length: number of batches.
    """

    classes: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    length: int

    def batch(self, batch_index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The class of each pack in a batch, and the index of the pack within its class, both (packs_per_batch,)."""
        in_batch = np.flatnonzero((self.starts <= batch_index) & (batch_index < self.stops))
        return self.classes[in_batch], batch_index - self.starts[in_batch]


class PublishedPlan:
    """All epochs have the length of the shortest of 20 simulated epochs.

    Args:
        pack_counts: (C,) number of packs of each class.
        packs_per_batch: packs in a batch, each from a different class.
    """

    def __init__(self, pack_counts: NDArray[np.int64], packs_per_batch: int) -> None:
        self.pack_counts = pack_counts
        self.packs_per_batch = packs_per_batch
        rng = np.random.default_rng(0)
        self._length = min(published_epoch(pack_counts, packs_per_batch, rng).length for _ in range(20))

    def length(self, seed: EpochSeed) -> int:
        """Number of batches of every epoch."""
        return self._length

    def draw(self, seed: EpochSeed, rng: np.random.Generator) -> PublishedEpoch:
        """Draws an epoch of at least this length, with a separate generator."""
        return published_epoch(self.pack_counts, self.packs_per_batch, np.random.default_rng((*seed, 1)), self._length)


def published_epoch(
    pack_counts: NDArray[np.int64], packs_per_batch: int, rng: np.random.Generator, min_length: int = 1
) -> PublishedEpoch:
    """Draws classes in random order, each for `pack_counts` (C,) consecutive batches.

    The epoch ends when fewer than `packs_per_batch` classes are left. Orders that give fewer than `min_length` batches
    are redrawn.
    """
    length = 0
    while length < min_length:
        classes = rng.permutation(np.flatnonzero(pack_counts))
        starts, length = schedule_classes(pack_counts[classes], packs_per_batch)
    return PublishedEpoch(classes, starts, starts + pack_counts[classes], length)


def schedule_classes(pack_counts: NDArray[np.int64], packs_per_batch: int) -> tuple[NDArray[np.int64], int]:
    """Index (C,) of each class's first batch, and the number of full batches.

    Args:
        pack_counts: (C,) number of batches that each class is in, at least 1.
        packs_per_batch: packs in a batch.
    """
    free = [0] * packs_per_batch  # a heap: the index of the batch in which each slot becomes free
    starts = []
    for count in pack_counts.tolist():
        starts.append(free[0])
        heapreplace(free, free[0] + count)
    return np.array(starts, np.int64), free[0]
