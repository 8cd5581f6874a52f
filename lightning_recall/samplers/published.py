"""Epochs in the order of the code that was published with the Recall@k surrogate loss."""

from dataclasses import dataclass
from heapq import heapreplace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PublishedEpoch:
    """Each class is in every batch from its first on, until its images are used up and the next class replaces it.

    Attributes:
        classes: (C,) in the order in which their turns come.
        starts: (C,) first batch of each; never falls.
        stops: (C,) the batch after its last.
        length: batches.
    """

    classes: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    length: int

    def batch(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Classes of a batch, and the number of each one's group, both (num_classes,)."""
        at = np.flatnonzero((self.starts <= number) & (number < self.stops))
        return self.classes[at], number - self.starts[at]


def published_epoch(
    groups: NDArray[np.int64], num_classes: int, rng: np.random.Generator, least: int = 1
) -> PublishedEpoch:
    """Classes with `groups` (C,) take turns in random order; the epoch ends when fewer than `num_classes` are left.

    An order that makes fewer than `least` batches is drawn anew.
    """
    length = 0
    while length < least:
        classes = rng.permutation(np.flatnonzero(groups))
        starts, length = turns(groups[classes], num_classes)
    return PublishedEpoch(classes, starts, starts + groups[classes], length)


def common_length(groups: NDArray[np.int64], num_classes: int) -> int:
    """Batches that an epoch of nearly every order has: the fewest of 20 orders."""
    rng = np.random.default_rng(0)
    return min(published_epoch(groups, num_classes, rng).length for _ in range(20))


def turns(groups: NDArray[np.int64], num_classes: int) -> tuple[NDArray[np.int64], int]:
    """First batch (C,) of each class, given how many it is in, from 1; and the number of full batches."""
    free = [0] * num_classes  # a heap: when each of a batch's places is free again
    starts = []
    for count in groups.tolist():
        starts.append(free[0])
        heapreplace(free, free[0] + count)
    return np.array(starts, np.int64), free[0]
