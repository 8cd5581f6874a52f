"""Loads each batch as a list of chunks, so that no worker holds a whole batch."""

import math
import random
from collections.abc import Iterator
from itertools import chain, islice, pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate, get_worker_info

from lightning_recall.checks import check_integer
from lightning_recall.random_state import preserve_random_state

MAX_PREFETCH = 64  # chunks; a worker has two files open for each, and the usual limit is 1,024


class ResumableBatchSampler(Protocol):
    """The interface that `ChunkLoader` requires of a batch sampler, such as `ClassBalancedBatchSampler`.

    Attributes:
        seed: seed of the batches and the augmentation.
        epoch: number of the next epoch.
    """

    seed: int
    epoch: int

    @property
    def local_slice(self) -> slice:
        """The slice of each global batch that this process yields."""

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""

    def settings(self) -> dict[str, Any]:
        """Settings, besides the epoch, that determine the batches; values must be loadable with `weights_only=True`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


class Chunk(NamedTuple):
    """Dataset indices of a chunk, and its position: seed, epoch, number of the batch, and offset in the batch."""

    indices: list[int]
    seed: int
    epoch: int
    batch: int
    offset: int


class ChunkSampler(Sampler[Chunk]):
    """Splits this process's slice of each batch into even chunks of at most `chunk_size` items.

    Attributes:
        skip: number of batches to skip at the start of the next epoch.
    """

    def __init__(self, batches: ResumableBatchSampler, chunk_size: int) -> None:
        self.batches = batches
        self.chunk_size = chunk_size
        self.skip = 0

    @property
    def chunk_boundaries(self) -> list[int]:
        """Chunk boundaries, as positions in the global batch, including the end."""
        local_slice = self.batches.local_slice
        size = local_slice.stop - local_slice.start
        count = -(-size // self.chunk_size)
        return [local_slice.start + size * part // count for part in range(count + 1)]

    def __len__(self) -> int:
        """Chunks in an epoch."""
        return len(self.batches) * (len(self.chunk_boundaries) - 1)

    def __iter__(self) -> Iterator[Chunk]:
        """Yields the chunks batch by batch."""
        boundaries, seed, epoch = self.chunk_boundaries, self.batches.seed, self.batches.epoch
        for number, indices in islice(enumerate(self.batches), self.skip, None):
            for start, stop in pairwise(boundaries):
                yield Chunk(indices[start - boundaries[0] : stop - boundaries[0]], seed, epoch, number, start)


class SeededItems:
    """Wraps a data set and seeds the random numbers of each item by its position in the epoch.

    Augmentations are therefore reproducible for any number of workers, processes and chunks, and after a resume. They
    may draw from the global generators of torch, numpy and Python. A data set with `__getitems__` is seeded once per
    chunk.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, chunk: Chunk) -> Any:
        """Items of a chunk, in order; restores the RNG state, which the training process shares if num_workers=0."""
        with preserve_random_state():
            if hasattr(self.dataset, "__getitems__"):
                seed_generators(*chunk[1:])
                return self.dataset.__getitems__(chunk.indices)
            return list(self.seeded(chunk))

    def seeded(self, chunk: Chunk) -> Iterator[Any]:
        """Seeds and loads the items of a chunk, one after the other."""
        for position, index in enumerate(chunk.indices, chunk.offset):
            seed_generators(chunk.seed, chunk.epoch, chunk.batch, position)
            yield self.dataset[index]


class StackedItems(SeededItems):
    """Returns each chunk collated. Each item is copied into its chunk at once, so that a worker holds it only once."""

    def __getitems__(self, chunk: Chunk) -> Any:
        """A collated chunk, equal to that of `default_collate`."""
        if hasattr(self.dataset, "__getitems__"):
            return default_collate(super().__getitems__(chunk))
        with preserve_random_state():
            return stack(self.seeded(chunk), len(chunk.indices))


def stack(items: Iterator[Any], count: int) -> Any:
    """Same as `default_collate` of `count` items; tuples of tensors are copied one by one.

    Raises:
        ValueError: for tensors of different shapes or dtypes.
    """
    first = next(items)
    if type(first) is not tuple or not all(type(part) is Tensor and part.numel() for part in first):
        return default_collate([first, *items])
    columns = [empty_column(part, count) for part in first]
    for position, item in enumerate(chain([first], items)):
        for column, part in zip(columns, item, strict=True):
            if part.shape != column.shape[1:] or part.dtype != column.dtype:
                raise ValueError(
                    f"Items of different shapes or dtypes cannot form a batch, such as {tuple(column.shape[1:])} "
                    f"{column.dtype} and {tuple(part.shape)} {part.dtype}: check the transforms."
                )
            column[position] = part
    return columns


def empty_column(part: Tensor, count: int) -> Tensor:
    """Memory for `count` tensors like this one; in a worker, memory that the training process shares."""
    shape = (count, *part.shape)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=part.dtype)
    size = math.prod(shape) * part.element_size()
    storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]  # as in `default_collate`
    return torch.empty(0, dtype=part.dtype).set_(storage).view(shape)


def unchanged(chunk: Any) -> Any:
    """The collate function of chunks that are collated already."""
    return chunk


def seed_generators(*key: int) -> None:
    """Seeds the global CPU generators of torch, numpy and Python from some integers."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the generator that data sets draw from
    torch.default_generator.manual_seed(seed)


class ChunkLoader:
    """Loads class-balanced batches as lists of chunks; the workers load the chunks of a batch in parallel.

    Yields lists of collated chunks (images (c, ...), labels (c,)): one list for each batch of `sampler`, restricted to
    this process's slice. Order and augmentation depend only on the sampler's seed and epoch: they are the same with any
    number of workers, chunks and processes.

    `state_dict` holds the position and the settings that the batches depend on; with it, Lightning resumes in the
    middle of an epoch. Batches that `load_state_dict` skips are not loaded.

    Args:
        dataset: map-style; items must be collatable by torch's `default_collate`.
        sampler: draws the batches, the same on every process.
        chunk_size: largest number of items in a chunk, at least 1.
        kwargs: passed to `torch.utils.data.DataLoader`. The default `prefetch_factor` lets the workers load the whole
            next batch during a training step, up to 64 chunks per worker. That batch lies in shared memory.

    Raises:
        ValueError: for an invalid `chunk_size`; when resuming in the middle of an epoch that was started with other
            settings.
    """

    def __init__(self, dataset: Any, sampler: ResumableBatchSampler, chunk_size: int, **kwargs: Any) -> None:
        check_integer("chunk_size", chunk_size, 1)
        self.sampler = sampler  # Lightning calls its set_epoch
        self.chunks = ChunkSampler(sampler, chunk_size)
        # Without a generator, the workers' seeds are drawn from torch's global one.
        generator = torch.Generator().manual_seed(int(sampler.seed))
        items = SeededItems(dataset) if kwargs.get("collate_fn") else StackedItems(dataset)
        self.prefetches_batch = kwargs.get("num_workers", 0) > 0 and kwargs.get("prefetch_factor") is None
        self.loader: DataLoader[Any] = DataLoader(
            items,  # type: ignore[arg-type]  # not a Dataset, but DataLoader only calls __getitems__
            batch_sampler=self.chunks,  # type: ignore[arg-type]  # torch passes chunks to __getitems__ unchanged
            generator=generator,
            **{"collate_fn": unchanged} | kwargs,
        )
        self.epoch = self.batches_done = 0  # batches that this epoch has yielded
        self.num_batches: int | None = None  # batches in this epoch; None before the first one
        self.resumed: dict[str, Any] | None = None  # the state to continue from, until an epoch starts

    @property
    def _iterator(self) -> Any:
        """Persistent workers; named as in DataLoader, so that Lightning stops them at the end of training."""
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self.loader._iterator = value

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Any]]:
        """One epoch of batches, each a list of chunks; after `load_state_dict`, the rest of that epoch."""
        self.epoch, self.batches_done = self.sampler.epoch, 0
        self.num_batches = len(self)  # len(sampler) refers to the next epoch once this one has started
        if self.resumed is not None and self.resumed["epoch"] == self.epoch:
            self.batches_done = self.batches_in_state(self.resumed)
        self.resumed = None
        self.chunks.skip = self.batches_done
        count, length = len(self.chunks.chunk_boundaries) - 1, self.num_batches
        if self.prefetches_batch:
            self.loader.prefetch_factor = min(max(2, -(-count // self.loader.num_workers)), MAX_PREFETCH)
        chunks = iter(self.loader)
        while self.batches_done < length:
            self.batches_done += 1
            yield list(islice(chunks, count))

    def batches_in_state(self, state: dict[str, Any]) -> int:
        """Number of batches already yielded according to a saved state; all if the epoch was complete.

        Raises:
            ValueError: if the state is mid-epoch and was saved with different settings.
        """
        done: int = state["batches"]
        if not done or done == state.get("num_batches"):
            return len(self) if done else 0
        for name, value in self.sampler.settings().items():
            if state.get(name, value) != value:  # earlier versions saved no settings
                raise ValueError(
                    f"Cannot resume in the middle of epoch {self.epoch} with {name}={value}: the epoch was started "
                    f"with {name}={state[name]}. Keep {name}={state[name]}, or resume from the end of an epoch."
                )
        return done

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the number of batches yielded, and the settings that they depend on."""
        if self.resumed is not None:
            return self.resumed
        position = {"epoch": self.epoch, "batches": self.batches_done, "num_batches": self.num_batches}
        return position | self.sampler.settings()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from the saved position if the next epoch is the saved one."""
        self.resumed = dict(state)
        self.sampler.set_epoch(state["epoch"])
