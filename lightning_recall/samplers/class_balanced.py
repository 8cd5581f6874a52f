"""The sampler: splits each class into packs of images, which a plan combines into the batches of an epoch."""

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from lightning_recall.checks import Labels, check_integer, labels_to_numpy
from lightning_recall.samplers.checks import (
    EpochOrder,
    check_options,
    check_sizes,
    check_super_classes,
    super_class_ids_of,
)
from lightning_recall.samplers.epochs import EpochPlan, EpochSeed
from lightning_recall.samplers.pack_counts import FewClasses, SmallClasses, Tail, count_packs
from lightning_recall.samplers.published import PublishedPlan
from lightning_recall.samplers.spread import FilledPlan, SpreadPlan
from lightning_recall.samplers.super_classes import SuperClassPlan

SINGLE_INDEX_CALLERS = {
    "torch.utils.data.sampler",
    "lightning_fabric.utilities.distributed",
    "lightning.fabric.utilities.distributed",
}
"""modules that expect single indices from a sampler: BatchSampler and Lightning's wrapper"""


class ClassBalancedBatchSampler(Sampler[list[int]]):
    """Draws batches of `batch_size / samples_per_class` classes with `samples_per_class` images each.

    An epoch shuffles the images of each class, splits them into packs of `samples_per_class`, and builds as many
    batches as possible without repeating a class in a batch or an image in the epoch. Images that do not fill a pack
    or a batch are left out of this epoch. Images of a class are consecutive in the batch.

    Each iteration over the sampler is a new epoch. In Lightning, and in loops that call `set_epoch`, epoch e consists
    of the same batches for the same seed, on every process and after a resume.

    With `super_classes`, epochs differ in length. Lightning uses the first epoch's length for all: it truncates longer
    epochs and skips validation after shorter ones.

    With torch.distributed, each process draws the same batches and yields its slice of each batch; `batch_size` is the
    global batch size.

    Args:
        labels: (N,) integers: the class of each item of the data set; or (N, 2): its class and super-class. The latter
            is only used if `super_classes` is set.
        batch_size: images in a batch, over all processes; a multiple of `samples_per_class`.
        samples_per_class: images of a class in a batch, at least 2, so that each has a positive.
        seed: makes the order reproducible.
        small_classes: what to do with classes of fewer than `samples_per_class` images: "error" rejects them, "drop"
            never draws them, "repeat" repeats their images as evenly as possible to fill one pack. The pack of a class
            with one image consists of copies of it.
        tail: what to do with images and packs that do not fill a batch: "drop" leaves them out of this epoch. "fill"
            draws every image of every usable class at least once per epoch, in the fewest batches, and fills these
            with repeated images, drawn as evenly as possible without repeating a class in a batch. One class much
            larger than the others makes such epochs long, since it can be in a batch only once.
        few_classes: what to do if a batch needs more classes than there are: "error" rejects it, "repeat" draws several
            packs of a class for a batch, as evenly as the class sizes allow. Images repeat within a batch only if
            there are too few and `small_classes="repeat"`.
        epoch_order: "longest" makes as many batches as possible and spreads each class over the epoch. "published"
            reproduces the official code of the Recall@k surrogate loss: classes in random order, each in consecutive
            batches until its images are used up and the next class takes its slot; the epoch ends when fewer classes
            remain than a batch needs. All epochs have the length of the shortest of 20 simulated epochs: longer ones
            drop random batches, shorter ones (about 1 in 20) are redrawn. It cannot be combined with "fill", "repeat"
            or `super_classes`.
        super_classes: number of super-classes per batch, for harder negatives: from 1 to the number of classes in a
            batch. Super-classes are sampled proportionally to their remaining packs and contribute equally where
            possible. A batch has fewer super-classes if fewer remain, and more if the chosen ones cannot fill it. The
            epoch ends when fewer classes with undrawn packs are left than a batch needs. With `tail="fill"`, extra
            batches draw the remaining packs from any super-class.
        reshuffle: False repeats the first epoch, for example for an overfitting test.

    Attributes:
        shard: (rank, world size): which slice of each batch this process yields. If you build the DataLoader yourself,
            also set `use_distributed_sampler=False` in the Trainer, so that Lightning does not replace the sampler.
            None: read from torch.distributed at the start of each epoch.

    Raises:
        ValueError: if no batch can be built from these arguments; the message suggests a change.

    >>> sampler = ClassBalancedBatchSampler([0, 0, 1, 1, 2, 2], batch_size=4, samples_per_class=2)
    >>> len(sampler), [len(batch) for batch in sampler]
    (1, [4])
    >>> sampler = ClassBalancedBatchSampler([0, 0, 1, 1, 2, 2], batch_size=4, samples_per_class=2, tail="fill")
    >>> len(sampler), sorted({index for batch in sampler for index in batch})
    (2, [0, 1, 2, 3, 4, 5])
    """

    def __init__(
        self,
        labels: Labels,
        batch_size: int,
        samples_per_class: int,
        seed: int = 0,
        small_classes: SmallClasses = "error",
        tail: Tail = "drop",
        few_classes: FewClasses = "error",
        epoch_order: EpochOrder = "longest",
        super_classes: int | None = None,
        reshuffle: bool = True,
    ) -> None:
        check_sizes(batch_size, samples_per_class)
        check_integer("seed", seed, 0)
        check_options(small_classes, tail, few_classes, epoch_order, super_classes)
        self.batch_size = batch_size
        self.samples_per_class = samples_per_class
        self.seed = seed
        self.epoch = 0
        self.tail = tail
        self.epoch_order = epoch_order
        self.super_classes = super_classes
        self.reshuffle = reshuffle
        self.shard: tuple[int, int] | None = None
        array = labels_to_numpy(labels)  # (N,) or (N, 2)
        self.num_images = len(array)
        column = array if array.ndim == 1 else array[:, 0]
        self._order = np.argsort(column, kind="stable").astype(np.int32)  # (N,) indices sorted by class
        self._sizes = np.unique(column, return_counts=True)[1]  # (C,)
        pack_counts = count_packs(
            self._sizes, samples_per_class, self.packs_per_batch, small_classes, tail, few_classes
        )
        self._plan: EpochPlan
        if super_classes is not None:
            super_class_ids = super_class_ids_of(array, self._order, self._sizes)  # (C,)
            check_super_classes(super_classes, super_class_ids[pack_counts.per_epoch > 0], self.packs_per_batch)
            self._plan = SuperClassPlan(
                pack_counts, super_class_ids, super_classes, self.packs_per_batch, fill=tail == "fill"
            )
        elif epoch_order == "published":
            self._plan = PublishedPlan(pack_counts.per_epoch, self.packs_per_batch)
        else:
            self._plan = (SpreadPlan if tail == "drop" else FilledPlan)(pack_counts, self.packs_per_batch)

    @property
    def packs_per_batch(self) -> int:
        """Number of packs in a batch: the number of classes, unless few_classes="repeat" draws several packs of one."""
        return self.batch_size // self.samples_per_class

    @property
    def local_slice(self) -> slice:
        """The slice of each batch that this process yields.

        Raises:
            ValueError: if `batch_size` is smaller than the world size.
        """
        rank, world_size = self.shard or (0, 1)
        if self.shard is None and torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if self.batch_size < world_size:
            raise ValueError(f"batch_size={self.batch_size} must be at least the world size {world_size}.")
        return slice(self.batch_size * rank // world_size, self.batch_size * (rank + 1) // world_size)

    @property
    def sampler(self) -> "ClassBalancedBatchSampler":
        """This object: Lightning calls `set_epoch` on the `sampler` of a batch sampler, not on itself."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch

    def settings(self) -> dict[str, Any]:
        """Settings that determine the batches of an epoch, as plain Python types that `torch.load` can read."""
        return {
            "batch_size": int(self.batch_size),
            "samples_per_class": int(self.samples_per_class),
            "seed": int(self.seed),
            "num_images": self.num_images,
            "tail": self.tail,
            "epoch_order": self.epoch_order,
            "super_classes": None if self.super_classes is None else int(self.super_classes),
        }

    @property
    def _epoch_seed(self) -> EpochSeed:
        """Seed and epoch number that seed the next epoch's generator."""
        return self.seed, self.epoch if self.reshuffle else 0

    def __len__(self) -> int:
        """Number of batches in the next epoch; constant unless `super_classes` is set."""
        return self._plan.length(self._epoch_seed)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields this process's slice of each batch of an epoch, as indices; the next iteration is the next epoch.

        Raises:
            ValueError: if passed to a DataLoader as `sampler=` instead of `batch_sampler=`.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and is_method_of(self, frame):  # skips frames of a subclass's __iter__
            frame = frame.f_back
        if frame is not None and frame.f_globals.get("__name__") in SINGLE_INDEX_CALLERS:
            raise ValueError(
                f"{type(self).__name__} draws whole batches: pass it to the DataLoader as batch_sampler=, without "
                "batch_size, and not as sampler=."
            )
        return self._batches()

    def _batches(self) -> Iterator[list[int]]:
        """Generator behind `__iter__`; separate, so that `__iter__` can raise before the first batch is requested."""
        local_slice, seed = self.local_slice, self._epoch_seed
        rng = np.random.default_rng(seed)
        shuffled = self._shuffle(rng)  # (N,)
        epoch = self._plan.draw(seed, rng)
        self.epoch += 1
        starts = np.cumsum(self._sizes) - self._sizes
        for batch in rng.permutation(epoch.length)[: self._plan.length(seed)]:
            classes, pack_indices = epoch.batch(batch)
            # pack p of a class starts at image p * samples_per_class and wraps around
            images = pack_indices[:, None] * self.samples_per_class + np.arange(self.samples_per_class)
            indices = shuffled[starts[classes, None] + images % self._sizes[classes, None]]
            yield indices.ravel()[local_slice].tolist()

    def _shuffle(self, rng: np.random.Generator) -> NDArray[np.int32]:
        """Indices (N,) sorted by class, in random order within each class."""
        classes = np.repeat(np.arange(len(self._sizes), dtype=np.int32), self._sizes)
        return self._order[np.lexsort((rng.random(len(classes)), classes))]


def is_method_of(sampler: ClassBalancedBatchSampler, frame: FrameType) -> bool:
    """Whether the frame is executing a method of `sampler`."""
    code = frame.f_code
    return code.co_argcount > 0 and frame.f_locals.get(code.co_varnames[0]) is sampler
