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
        """The class of each pack in a batch, and the index of the pack within its class, both (num_packs,)."""
        in_batch = np.flatnonzero((self.starts <= batch_index) & (batch_index < self.stops))
        return self.classes[in_batch], batch_index - self.starts[in_batch]


class PublishedPlan:
    """All epochs have the length of the shortest of 20 simulated epochs.

    Args:
        packs: (C,) number of packs of each class.
        num_packs: packs in a batch, each from a different class.
    """

    def __init__(self, packs: NDArray[np.int64], num_packs: int) -> None:
        self.packs = packs
        self.num_packs = num_packs
        rng = np.random.default_rng(0)
        self._length = min(published_epoch(packs, num_packs, rng).length for _ in range(20))

    def length(self, seed: EpochSeed) -> int:
        """Number of batches of every epoch."""
        return self._length

    def draw(self, seed: EpochSeed, rng: np.random.Generator) -> PublishedEpoch:
        """Draws an epoch of at least this length, with a separate generator."""
        return published_epoch(self.packs, self.num_packs, np.random.default_rng((*seed, 1)), self._length)


def published_epoch(
    packs: NDArray[np.int64], num_packs: int, rng: np.random.Generator, min_length: int = 1
) -> PublishedEpoch:
    """Draws classes in random order, each for `packs` (C,) consecutive batches.

    The epoch ends when fewer than `num_packs` classes are left. Orders that give fewer than `min_length` batches are
    redrawn.
    """
    length = 0
    while length < min_length:
        classes = rng.permutation(np.flatnonzero(packs))
        starts, length = schedule_classes(packs[classes], num_packs)
    return PublishedEpoch(classes, starts, starts + packs[classes], length)


def schedule_classes(packs: NDArray[np.int64], num_packs: int) -> tuple[NDArray[np.int64], int]:
    """Index (C,) of each class's first batch, and the number of full batches.

    Args:
        packs: (C,) number of batches that each class is in, at least 1.
        num_packs: packs in a batch.
    """
    free = [0] * num_packs  # a heap: the index of the batch in which each slot becomes free
    starts = []
    for count in packs.tolist():
        starts.append(free[0])
        heapreplace(free, free[0] + count)
    return np.array(starts, np.int64), free[0]
