"""Shuffled training batches that resume exactly, and evaluation batches that cover each item once."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from lightning_recall.checks import check_integer
from lightning_recall.data.chunk_loader import ChunkLoader
from lightning_recall.data.messages import pluralize


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without torch.distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class ShuffledBatchSampler:
    """Batches of shuffled images; the order depends only on `seed` and the epoch.

    Images that do not fill the last batch are left out of this epoch. With fewer images than `batch_size`, one batch
    holds them all.

    Args:
        num_images: size of the data set.
        batch_size: images in a batch, over all processes; each process yields its slice.
        seed: random seed.
        reshuffle: False repeats the first epoch, for example for an overfitting test.

    Raises:
        ValueError: at iteration, if a batch cannot be split evenly over the processes.

    >>> sampler = ShuffledBatchSampler(7, batch_size=3)
    >>> [len(batch) for batch in sampler]
    [3, 3]
    """

    def __init__(self, num_images: int, batch_size: int, seed: int = 0, reshuffle: bool = True) -> None:
        check_integer("num_images", num_images, 1)
        check_integer("batch_size", batch_size, 1)
        self.num_images = num_images
        self.requested = batch_size
        self.seed, self.epoch, self.reshuffle = seed, 0, reshuffle

    @property
    def batch_size(self) -> int:
        """Images in a batch; with few images, the largest multiple of the number of processes."""
        _, world_size = rank_and_world_size()
        if self.requested % world_size:
            raise ValueError(
                f"batch_size={self.requested} counts the images on all processes, so it must be a multiple of their "
                f"number, {world_size}: choose {-(-self.requested // world_size) * world_size}."
            )
        if self.num_images < world_size:
            raise ValueError(
                f"{pluralize(self.num_images, 'training image')} cannot be split over {world_size} processes: use "
                "fewer processes."
            )
        return min(self.requested, self.num_images // world_size * world_size)

    @property
    def local_slice(self) -> slice:
        """The slice of each batch that this process yields."""
        rank, world_size = rank_and_world_size()
        size = self.batch_size // world_size
        return slice(rank * size, (rank + 1) * size)

    @property
    def sampler(self) -> "ShuffledBatchSampler":
        """This object: Lightning calls `set_epoch` on the `sampler` of a batch sampler, not on itself."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch

    def settings(self) -> dict[str, Any]:
        """Settings that determine the batches of an epoch."""
        return {"batch_size": int(self.requested), "seed": int(self.seed), "num_images": int(self.num_images)}

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.num_images // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """This process's slice of each batch; the next iteration is the next epoch."""
        rng = np.random.default_rng((self.seed, self.epoch if self.reshuffle else 0))
        order, size, part = rng.permutation(self.num_images), self.batch_size, self.local_slice
        self.epoch += 1
        for number in range(self.num_images // size):
            yield order[number * size : (number + 1) * size][part].tolist()


class BatchLoader(ChunkLoader):
    """Loads each batch as a whole: yields what `collate_fn` returns for this process's slice of a batch.

    Order and augmentation depend only on the sampler's seed and epoch, and a run resumes in the middle of an epoch: see
    `ChunkLoader`.

    Args:
        dataset: map-style.
        sampler: draws the batches, the same on every process.
        kwargs: passed to `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Any, sampler: ShuffledBatchSampler, **kwargs: Any) -> None:
        super().__init__(dataset, sampler, chunk_size=sampler.requested, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        """One epoch of batches; after `load_state_dict`, the rest of that epoch."""
        for (batch,) in super().__iter__():
            yield batch


class RepeatedIndex(int):
    """Index of an image that a process gets a second time, so that all processes have equally many batches."""


class EvaluationSampler(DistributedSampler[Any]):
    """Splits the images over the processes, in order; repeated images are `RepeatedIndex`."""

    def __init__(self, data: Any, rank: int, world_size: int) -> None:
        super().__init__(data, num_replicas=world_size, rank=rank, shuffle=False)

    def __iter__(self) -> Iterator[int]:
        """Indices of this process."""
        count = len(self.dataset)  # type: ignore[arg-type]  # data sets here have a length
        for position in range(self.rank, self.total_size, self.num_replicas):
            yield position if position < count else RepeatedIndex(position % count)


class EvaluationItems:
    """Wraps a data set: the targets of repeated images are replaced, so that no image is scored twice.

    Args:
        data: items (image, target); the target is a mask or a label.
        ignored: value that the scores ignore; all entries of a repeated image's target have it.
    """

    def __init__(self, data: Any, ignored: int) -> None:
        self.data = data
        self.ignored = ignored

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and target."""
        image, target = self.data[int(index)]
        return image, torch.full_like(target, self.ignored) if isinstance(index, RepeatedIndex) else target

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Items of a batch: the data set's own `__getitems__` would not see which images are repeated."""
        return [self[index] for index in indices]

    def __getattr__(self, name: str) -> Any:
        """Forwards to the data set: `image_path`, `class_names`, ..."""
        if name == "data":  # not set yet during copy
            raise AttributeError(name)
        return getattr(self.data, name)
