"""The sampler: deals images out in groups, and leaves to the epoch which groups stand together in a batch."""

import sys
from collections.abc import Iterator
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from lightning_recall.samplers.checks import (
    EpochOrder,
    Labels,
    check_integer,
    check_options,
    check_sizes,
    check_super_classes,
    label_array,
    super_class_of,
)
from lightning_recall.samplers.pack_counts import FewClasses, SmallClasses, Tail, pack_counts
from lightning_recall.samplers.published import PublishedEpoch, common_length, published_epoch
from lightning_recall.samplers.spread import SpreadEpoch, fewest_batches, filled_epoch, longest_epoch, most_batches
from lightning_recall.samplers.super_classes import SuperClassEpoch, super_class_epoch

SINGLE_ROWS = {  # what these modules take from a sampler is one row: BatchSampler, and Lightning's wrapper of it
    "torch.utils.data.sampler",
    "lightning_fabric.utilities.distributed",
    "lightning.fabric.utilities.distributed",
}


class ClassBalancedBatchSampler(Sampler[list[int]]):
    """Draws batches of `batch_size / samples_per_class` classes with `samples_per_class` images each.

    An epoch deals each class's images out in groups of `samples_per_class`, in a new order, and makes as many batches
    as these groups allow with no class twice in a batch; no image comes twice in an epoch. What does not fill a group
    or a batch waits for another epoch's draw. Images of a class stand side by side in the batch.

    Every pass is another epoch. In Lightning, and in loops that call `set_epoch`, epoch e is the same batches for the
    same seed, on every process and after a resume.

    Epochs of `super_classes` differ in length. Lightning plans all with that of the first: it cuts longer ones, and
    does not validate after shorter ones.

    Where torch.distributed runs, each process draws the same batches and yields its own part of each, so that
    `batch_size` counts the images of all of them.

    Args:
        labels: (N,) integers: the class of each item of the data set; or (N, 2): its class and its super-class, which
            only `super_classes` looks at.
        batch_size: images in a batch, over all processes; a multiple of `samples_per_class`.
        samples_per_class: images of a class in a batch, from 2, so that each has a positive.
        seed: makes the order reproducible.
        small_classes: what to do with classes of fewer than `samples_per_class` images: "error" refuses them, "drop"
            never draws them, "repeat" fills their group with their images again, each as often as the others or once
            more. The group of a class of one image is copies of it.
        tail: what to do with images and groups that do not fill a batch: "drop" leaves them out of this epoch. "fill"
            draws every image of every class in use at least once an epoch, in the fewest batches; what these lack is
            drawn again, evenly over all images as far as no class comes twice in a batch. One class much larger than
            the others makes such epochs long: it can be in a batch only once.
        few_classes: what to do if a batch needs more classes than there are: "error" refuses it, "repeat" puts several
            groups of a class in a batch, as evenly as the classes' sizes allow. They have no image in common; only if
            there are too few images for that, and with `small_classes="repeat"`, images come more than once.
        epoch_order: "longest" makes as many batches as possible and spreads each class over the epoch. "published" is
            the epoch of the code published with the Recall@k surrogate loss: the first classes of a random order are
            in every batch until their images are used up and the next classes take their places; it ends when fewer
            classes are left than a batch needs. For epochs of one length, that of the shortest of 20, batches drawn at
            random are left out of longer ones, and shorter ones, some 1 in 20, are drawn anew. It does not go with
            "fill", "repeat" or `super_classes`.
        super_classes: from how many super-classes a batch takes its classes, for harder negatives: from 1 to the
            classes in a batch. They are drawn in proportion to the groups that they have left, and share the batch
            evenly as far as they have classes. Fewer are drawn only where fewer have groups left, more where these
            have too few classes to fill the batch. The epoch ends when fewer classes have groups left than a batch
            needs: all others are drawn to the last group. The batches that "fill" adds draw what is left from all
            super-classes.
        reshuffle: False makes every pass the first epoch, to overfit on purpose.

    Attributes:
        shard: (rank, world size): which part of each batch this process yields, for which Lightning's Trainer wants
            `use_distributed_sampler=False` with a DataLoader of your own; None: what torch.distributed says when
            a pass begins.

    Raises:
        ValueError: if the request cannot be met; it says which number to change.

    >>> sampler = ClassBalancedBatchSampler([0, 0, 1, 1, 2, 2], batch_size=4, samples_per_class=2)
    >>> len(sampler), [len(batch) for batch in sampler]
    (1, [4])
    >>> sampler = ClassBalancedBatchSampler([0, 0, 1, 1, 2, 2], batch_size=4, samples_per_class=2, tail="fill")
    >>> len(sampler), sorted({row for batch in sampler for row in batch})
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
        array = label_array(labels)  # (N,) or (N, 2)
        self.num_images = len(array)
        column = array if array.ndim == 1 else array[:, 0]
        self._order = np.argsort(column, kind="stable").astype(np.int32)  # rows of one class side by side
        self._sizes = np.unique(column, return_counts=True)[1]  # (C,)
        self._groups = pack_counts(self._sizes, samples_per_class, self.num_classes, small_classes, tail, few_classes)
        self._length: int | None = None  # batches, if all epochs have the same number
        self._drawn: tuple[tuple[int, int], PublishedEpoch | SuperClassEpoch] | None = None  # seed and epoch, and this
        if super_classes is not None:
            self._super_of = super_class_of(array, self._order, self._sizes)  # (C,)
            check_super_classes(super_classes, self._super_of[self._groups.per_epoch > 0], self.num_classes)
        elif epoch_order == "longest" and tail == "drop":
            self._length = most_batches(self._groups.per_epoch, self.num_classes, self._groups.per_batch)
        elif epoch_order == "longest":
            self._length = fewest_batches(self._groups.per_epoch, self.num_classes, self._groups.per_batch)
        else:
            self._length = common_length(self._groups.per_epoch, self.num_classes)

    @property
    def num_classes(self) -> int:
        """Classes in a batch; groups of images, where `few_classes="repeat"` puts several of a class in it."""
        return self.batch_size // self.samples_per_class

    @property
    def share(self) -> slice:
        """This process's part of each batch.

        Raises:
            ValueError: if the batch has less than an image for each process.
        """
        rank, world_size = self.shard or (0, 1)
        if self.shard is None and torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if self.batch_size < world_size:
            raise ValueError(f"batch_size={self.batch_size} leaves none for some of the {world_size} processes.")
        return slice(self.batch_size * rank // world_size, self.batch_size * (rank + 1) // world_size)

    @property
    def sampler(self) -> "ClassBalancedBatchSampler":
        """This object: Lightning calls `set_epoch` on the `sampler` of a batch sampler, not on itself."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass epoch `epoch`."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches in the epoch that the next pass draws; the same for all, but for `super_classes`."""
        return self._length if self._length is not None else self._draw_epoch().length

    def __iter__(self) -> Iterator[list[int]]:
        """This process's part of one epoch's batches, as row numbers; the next pass is the next epoch.

        Raises:
            ValueError: if a DataLoader takes the batches for single rows.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and is_method_of(self, frame):  # a subclass's own __iter__, a generator perhaps
            frame = frame.f_back
        if frame is not None and frame.f_globals.get("__name__") in SINGLE_ROWS:
            raise ValueError(
                f"{type(self).__name__} draws whole batches: give it to the DataLoader as batch_sampler=, without "
                "batch_size, and not as sampler=."
            )
        return self._batches()

    def _batches(self) -> Iterator[list[int]]:
        """The batches of `__iter__`."""
        share = self.share
        rng = np.random.default_rng((self.seed, self.epoch if self.reshuffle else 0))
        shuffled = self._shuffle(rng)  # (N,)
        spread = self._length is not None and self.epoch_order == "longest"
        epoch = self._spread_epoch(rng) if spread else self._draw_epoch()
        self.epoch += 1
        starts = np.cumsum(self._sizes) - self._sizes
        for batch in rng.permutation(epoch.length)[: self._length]:
            classes, numbers = epoch.batch(batch)
            # Group g of a class is its images g * samples_per_class, ..., beginning again after the last.
            images = numbers[:, None] * self.samples_per_class + np.arange(self.samples_per_class)
            rows = shuffled[starts[classes, None] + images % self._sizes[classes, None]]
            yield rows.ravel()[share].tolist()

    def _shuffle(self, rng: np.random.Generator) -> NDArray[np.int32]:
        """Row numbers (N,), one class after the other, each one's images in random order."""
        classes = np.repeat(np.arange(len(self._sizes), dtype=np.int32), self._sizes)
        return self._order[np.lexsort((rng.random(len(classes)), classes))]

    def _spread_epoch(self, rng: np.random.Generator) -> SpreadEpoch:
        """The batches of an epoch, where their number is known without drawing."""
        if self.tail == "fill":
            return filled_epoch(self._groups, np.zeros_like(self._sizes), self.num_classes, rng)
        return longest_epoch(self._groups, len(self), self.num_classes, rng)

    def _draw_epoch(self) -> PublishedEpoch | SuperClassEpoch:
        """The batches of the next epoch, where more are drawn than known before; kept, as `len` asks for it too."""
        key = self.seed, self.epoch if self.reshuffle else 0
        if self._drawn is None or self._drawn[0] != key:
            rng = np.random.default_rng((*key, 1))  # not the numbers that shuffle the images
            size, fill = self.num_classes, self.tail == "fill"
            if self.super_classes is None:
                self._drawn = key, published_epoch(self._groups.per_epoch, size, rng, least=len(self))
            else:
                epoch = super_class_epoch(self._groups, self._super_of, self.super_classes, size, fill, rng)
                self._drawn = key, epoch
        return self._drawn[1]


def is_method_of(sampler: ClassBalancedBatchSampler, frame: FrameType) -> bool:
    """Whether a frame runs a method of this very object."""
    code = frame.f_code
    return code.co_argcount > 0 and frame.f_locals.get(code.co_varnames[0]) is sampler
