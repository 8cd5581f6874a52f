"""Batches with the same number of images from each of their classes."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler


class ClassBalancedBatchSampler(Sampler[list[int]]):
    """Draws batches of `batch_size / samples_per_class` classes with `samples_per_class` images each.

    An epoch deals each class's images out in groups of `samples_per_class`, in a new order, and makes as many batches
    as these groups allow with no class twice in a batch; no image comes twice in an epoch. What does not fill a group
    or a batch waits for another epoch's draw. Images of a class stand side by side in the batch.

    Every pass is another epoch. In Lightning, and in loops that call `set_epoch`, epoch e is the same batches for the
    same seed, on every process and after a resume.

    Where torch.distributed runs, each process draws the same batches and yields its own part of each, so that
    `batch_size` counts the images of all of them.

    Args:
        labels: (N,) integers: the class of each item of the data set.
        batch_size: images in a batch, over all processes; a multiple of `samples_per_class`.
        samples_per_class: images of a class in a batch, from 2, so that each has a positive.
        seed: makes the order reproducible.
        small_classes: what to do with classes of fewer than `samples_per_class` images: "error" refuses them, "drop"
            never draws them.
        reshuffle: False makes every pass the first epoch, to overfit on purpose.
        rank: number of this process; None: what torch.distributed says when a pass begins.
        world_size: number of processes; None: likewise.

    Raises:
        ValueError: if the request cannot be met; it says which number to change.

    >>> sampler = ClassBalancedBatchSampler([0, 0, 1, 1, 2, 2], batch_size=4, samples_per_class=2)
    >>> len(sampler), [len(batch) for batch in sampler]
    (1, [4])
    """

    def __init__(
        self,
        labels: Sequence[int] | NDArray[np.integer] | Tensor,
        batch_size: int,
        samples_per_class: int,
        seed: int = 0,
        small_classes: Literal["error", "drop"] = "error",
        reshuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if samples_per_class < 2:
            raise ValueError(
                f"samples_per_class must be at least 2, so that each image has a positive, got {samples_per_class}."
            )
        if batch_size < 2 * samples_per_class or batch_size % samples_per_class:
            raise ValueError(
                f"batch_size must be a multiple of samples_per_class={samples_per_class} and hold at least 2 classes, "
                f"got {batch_size}."
            )
        array = np.asarray(labels)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"labels must be integers of shape (N,), got {array.dtype} {array.shape}.")
        self.batch_size = batch_size
        self.samples_per_class = samples_per_class
        self.seed = seed
        self.epoch = 0
        self.reshuffle = reshuffle
        self.rank, self.world_size = rank, world_size
        self._order = np.argsort(array, kind="stable")  # rows of one class side by side
        _, self._counts = np.unique(array, return_counts=True)
        small = int((self._counts < samples_per_class).sum())
        if small and small_classes == "error":
            raise ValueError(
                f"{small} of {len(self._counts)} classes have fewer than samples_per_class={samples_per_class} images. "
                'Lower samples_per_class, or leave these classes out with small_classes="drop".'
            )
        usable = len(self._counts) - small
        if usable < 2:
            raise ValueError(
                f"A batch needs 2 classes at least, but only {usable} of {len(self._counts)} have "
                f"samples_per_class={samples_per_class} images: lower samples_per_class."
            )
        if usable < self.num_classes:
            raise ValueError(
                f"A batch needs batch_size / samples_per_class = {self.num_classes} classes, but only {usable} have "
                f"{samples_per_class} images or more. Lower batch_size to {usable * samples_per_class} or less, or "
                "raise samples_per_class."
            )
        self._groups = self._counts // samples_per_class  # (C,)
        self._length = most_batches(self._groups, self.num_classes)

    @property
    def num_classes(self) -> int:
        """Classes in a batch."""
        return self.batch_size // self.samples_per_class

    @property
    def share(self) -> slice:
        """This process's part of each batch.

        Raises:
            ValueError: if the batch has less than an image for each process.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world_size = self.rank, self.world_size
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        if world_size is None:
            world_size = torch.distributed.get_world_size() if distributed else 1
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
        """Batches in an epoch."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        """This process's part of one epoch's batches, as row numbers; the next pass is the next epoch."""
        share = self.share
        rng = np.random.default_rng((self.seed, self.epoch if self.reshuffle else 0))
        self.epoch += 1
        groups = self._deal(rng)  # (G, samples_per_class)
        # Column b of this table is a batch. A class's groups follow one another and are at most as many as columns,
        # so no column has two of them.
        table = groups[: self.num_classes * self._length].reshape(self.num_classes, self._length, -1)
        for batch in rng.permutation(self._length):
            yield table[:, batch].ravel()[share].tolist()

    def _deal(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Row numbers (G, samples_per_class): classes in random order, each one's images shuffled and cut in groups."""
        classes = np.repeat(np.arange(len(self._counts)), self._counts)
        shuffled = self._order[np.lexsort((rng.random(len(classes)), classes))]
        starts = np.cumsum(self._counts) - self._counts
        order = rng.permutation(len(self._counts))
        taken = np.minimum(self._groups, self._length)[order]  # groups of each class, in the order of the classes
        within = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)  # 0, 1, ... in each class
        first = np.repeat(starts[order], taken) + within * self.samples_per_class
        dealt: NDArray[np.int64] = shuffled[first[:, None] + np.arange(self.samples_per_class)]
        return dealt


def most_batches(groups: NDArray[np.int64], num_classes: int) -> int:
    """Largest number of batches of `num_classes` different classes, given how many groups (C,) each class has."""
    most = int(groups.sum()) // num_classes
    while np.minimum(groups, most).sum() < most * num_classes:
        most = int(np.minimum(groups, most).sum()) // num_classes
    return most
