"""Epochs whose batches draw their classes from a few super-classes, so that negatives are harder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_recall.samplers.epochs import EpochSeed
from lightning_recall.samplers.pack_counts import PackCounts
from lightning_recall.samplers.spread import SpreadEpoch, filled_epoch
from lightning_recall.tensors import numpy_arange_within_groups


@dataclass(frozen=True)
class SuperClassEpoch:
    """Batches from a few super-classes each, then batches that draw the remaining packs.

    Attributes:
        classes: (B, packs_per_batch) class of each pack of each batch, ascending.
        pack_indices: (B, packs_per_batch) index of each pack within its class.
        rest: extra batches from all super-classes, for `tail="fill"`.
    """

    classes: NDArray[np.int32]
    pack_indices: NDArray[np.int32]
    rest: SpreadEpoch | None

    @property
    def length(self) -> int:
        """Number of batches."""
        return len(self.classes) + (self.rest.length if self.rest else 0)

    def batch(self, batch_index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The class of each pack in a batch, and the index of the pack within its class, both (packs_per_batch,)."""
        if self.rest and batch_index >= len(self.classes):
            return self.rest.batch(batch_index - len(self.classes))
        return self.classes[batch_index].astype(np.int64), self.pack_indices[batch_index].astype(np.int64)


class SuperClassPlan:
    """Epochs of different lengths, whose batches draw their classes from `num_super_classes` super-classes.

    Args:
        pack_counts: number of packs of each class.
        super_class_ids: (C,) index of each class's super-class, from 0.
        num_super_classes: super-classes in a batch.
        packs_per_batch: packs in a batch.
        fill: whether extra batches draw the packs that are left.
    """

    def __init__(
        self,
        pack_counts: PackCounts,
        super_class_ids: NDArray[np.int64],
        num_super_classes: int,
        packs_per_batch: int,
        fill: bool,
    ) -> None:
        self.pack_counts = pack_counts
        self.super_class_ids = super_class_ids
        self.num_super_classes = num_super_classes
        self.packs_per_batch = packs_per_batch
        self.fill = fill
        self._last: tuple[EpochSeed, SuperClassEpoch] | None = None  # (seed, epoch) of the last draw

    def length(self, seed: EpochSeed) -> int:
        """Number of batches of this epoch; draws and caches the epoch."""
        return self._draw(seed).length

    def draw(self, seed: EpochSeed, rng: np.random.Generator) -> SuperClassEpoch:
        """Draws an epoch with a separate generator, so that `length` does not have to shuffle the images."""
        return self._draw(seed)

    def _draw(self, seed: EpochSeed) -> SuperClassEpoch:
        if self._last is None or self._last[0] != seed:
            self._last = seed, self._new_epoch(np.random.default_rng((*seed, 1)))
        return self._last[1]

    def _new_epoch(self, rng: np.random.Generator) -> SuperClassEpoch:
        batches = draw_batches(
            self.pack_counts, self.super_class_ids, self.num_super_classes, self.packs_per_batch, rng
        )
        classes = np.array(batches, np.int32).reshape(-1, self.packs_per_batch)
        drawn = np.bincount(classes.ravel(), minlength=len(self.super_class_ids))  # (C,)
        pack_indices = np.empty(classes.size, np.int32)
        pack_indices[np.argsort(classes.ravel(), kind="stable")] = numpy_arange_within_groups(drawn)
        is_left = self.fill and bool((drawn < self.pack_counts.per_epoch).any())
        rest = filled_epoch(self.pack_counts, drawn, self.packs_per_batch, rng) if is_left else None
        return SuperClassEpoch(classes, pack_indices.reshape(classes.shape), rest)


def draw_batches(
    pack_counts: PackCounts,
    super_class_ids: NDArray[np.int64],
    num_super_classes: int,
    packs_per_batch: int,
    rng: np.random.Generator,
) -> list[NDArray[np.int32]]:
    """Draws batches until no full batch is left; each is given by the classes (packs_per_batch,) of its packs."""
    remaining = pack_counts.per_epoch.copy()  # (C,)
    # (C,) packs that the next batch may draw of each class
    available = np.minimum(pack_counts.per_epoch, pack_counts.per_batch)
    members = np.split(np.argsort(super_class_ids, kind="stable"), np.cumsum(np.bincount(super_class_ids))[:-1])
    super_remaining = np.bincount(super_class_ids, remaining).astype(np.int64)  # (S,)
    super_available = np.bincount(super_class_ids, available).astype(np.int64)  # (S,)
    batches = []
    while super_available.sum() >= packs_per_batch:
        order = np.flatnonzero(super_remaining)
        order = order[weighted_order(super_remaining[order], rng)]
        num_needed = int(np.searchsorted(np.cumsum(super_available[order]), packs_per_batch)) + 1
        chosen = order[: max(num_super_classes, num_needed)]
        candidates = np.concatenate([members[s] for s in chosen])
        candidates = np.repeat(candidates, available[candidates])  # repeat each class by its number of available packs
        super_class_position = np.repeat(np.arange(len(chosen)), super_available[chosen])
        keys = rng.exponential(size=len(super_class_position)) / remaining[candidates]
        candidates = candidates[np.lexsort((keys, super_class_position))]
        # Round-robin over super-classes; additional super-classes, needed to fill the batch, come last.
        turn = numpy_arange_within_groups(super_available[chosen]) + len(super_class_position) * np.maximum(
            super_class_position - num_super_classes + 1, 0
        )
        batch = np.sort(candidates[np.argsort(turn, kind="stable")[:packs_per_batch]])
        changed, count = np.unique(batch, return_counts=True)
        remaining[changed] -= count
        np.subtract.at(super_remaining, super_class_ids[changed], count)
        lost = available[changed] - np.minimum(remaining[changed], pack_counts.per_batch[changed])
        available[changed] -= lost
        np.subtract.at(super_available, super_class_ids[changed], lost)
        batches.append(batch.astype(np.int32))
    return batches


def weighted_order(weights: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Weighted random permutation (N,); weights must be positive."""
    return np.argsort(rng.exponential(size=len(weights)) / weights)
