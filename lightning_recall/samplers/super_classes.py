"""Epochs whose batches draw their classes from a few super-classes, so that negatives are harder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_recall.samplers.pack_counts import PackCounts
from lightning_recall.samplers.spread import SpreadEpoch, filled_epoch


@dataclass(frozen=True)
class SuperClassEpoch:
    """Batches of a few super-classes each, and those that draw what these leave.

    Attributes:
        classes: (B, num_groups) of the groups of each batch, in rising order.
        numbers: (B, num_groups) of these groups in their classes.
        rest: batches of any super-classes.
    """

    classes: NDArray[np.int32]
    numbers: NDArray[np.int32]
    rest: SpreadEpoch | None

    @property
    def length(self) -> int:
        """Batches."""
        return len(self.classes) + (self.rest.length if self.rest else 0)

    def batch(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Classes of a batch's groups, and the number of each group in its class, both (num_groups,)."""
        if self.rest and number >= len(self.classes):
            return self.rest.batch(number - len(self.classes))
        return self.classes[number].astype(np.int64), self.numbers[number].astype(np.int64)


def super_class_epoch(
    groups: PackCounts,
    super_of: NDArray[np.int64],
    num_super_classes: int,
    num_groups: int,
    fill: bool,
    rng: np.random.Generator,
) -> SuperClassEpoch:
    """Batches of `num_groups` groups from `num_super_classes`, given each class's super-class (C,) from 0."""
    batches = draw_batches(groups, super_of, num_super_classes, num_groups, rng)
    classes = np.array(batches, np.int32).reshape(-1, num_groups)
    drawn = np.bincount(classes.ravel(), minlength=len(super_of))  # (C,)
    numbers = np.empty(classes.size, np.int32)
    numbers[np.argsort(classes.ravel(), kind="stable")] = count_up(drawn)
    rest = filled_epoch(groups, drawn, num_groups, rng) if fill and (drawn < groups.per_epoch).any() else None
    return SuperClassEpoch(classes, numbers.reshape(classes.shape), rest)


def draw_batches(
    groups: PackCounts,
    super_of: NDArray[np.int64],
    num_super_classes: int,
    num_groups: int,
    rng: np.random.Generator,
) -> list[NDArray[np.int32]]:
    """Classes (num_groups,) of batch after batch, until what is left fills none."""
    left, room = groups.per_epoch.copy(), np.minimum(groups.per_epoch, groups.per_batch)  # (C,)
    members = np.split(np.argsort(super_of, kind="stable"), np.cumsum(np.bincount(super_of))[:-1])
    super_left = np.bincount(super_of, left).astype(np.int64)  # (S,)
    super_room = np.bincount(super_of, room).astype(np.int64)  # (S,) groups that the next batch may have of each
    batches = []
    while super_room.sum() >= num_groups:
        order = np.flatnonzero(super_left)
        order = order[weighted_order(super_left[order], rng)]
        enough = int(np.searchsorted(np.cumsum(super_room[order]), num_groups)) + 1
        chosen = order[: max(num_super_classes, enough)]
        candidates = np.concatenate([members[s] for s in chosen])
        candidates = np.repeat(candidates, room[candidates])  # a class once for each group that the batch may have
        owner = np.repeat(np.arange(len(chosen)), super_room[chosen])
        candidates = candidates[np.lexsort((rng.exponential(size=len(owner)) / left[candidates], owner))]
        # Super-classes give a group each in turn; those that are there because the others had too few come last.
        turn = count_up(super_room[chosen]) + len(owner) * np.maximum(owner - num_super_classes + 1, 0)
        batch = np.sort(candidates[np.argsort(turn, kind="stable")[:num_groups]])
        changed, count = np.unique(batch, return_counts=True)
        left[changed] -= count
        np.subtract.at(super_left, super_of[changed], count)
        lost = room[changed] - np.minimum(left[changed], groups.per_batch[changed])
        room[changed] -= lost
        np.subtract.at(super_room, super_of[changed], lost)
        batches.append(batch.astype(np.int32))
    return batches


def weighted_order(weights: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Random order (N,) in which the next is always drawn in proportion to its weight, above 0."""
    return np.argsort(rng.exponential(size=len(weights)) / weights)


def count_up(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ..., count - 1 for each of the counts (C,), one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
