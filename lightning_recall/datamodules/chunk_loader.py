"""A batch is a list of chunks: large batches without a worker that holds one whole."""

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

from torch.utils.data import DataLoader, Sampler

from lightning_recall.samplers import ClassBalancedBatchSampler


class ChunkSampler(Sampler[list[int]]):
    """Cuts one process's share of every batch evenly into lists of at most `chunk_size` row numbers."""

    def __init__(self, batches: ClassBalancedBatchSampler, chunk_size: int, rank: int, world_size: int) -> None:
        self.batches = batches
        self.chunk_size = chunk_size
        self.share = batches.batch_size // world_size  # images of a batch that this process embeds
        self.first = rank * self.share

    @property
    def chunks_per_batch(self) -> int:
        """Chunks in this process's share of a batch."""
        return -(-self.share // self.chunk_size)

    def __len__(self) -> int:
        """Chunks in an epoch."""
        return len(self.batches) * self.chunks_per_batch

    def __iter__(self) -> Iterator[list[int]]:
        """Chunks of the first batch, then of the second, ..."""
        for batch in self.batches:
            share = batch[self.first : self.first + self.share]
            cuts = [self.share * part // self.chunks_per_batch for part in range(self.chunks_per_batch + 1)]
            yield from (share[start:stop] for start, stop in pairwise(cuts))


class ChunkLoader:
    """Loads class-balanced batches as lists of chunks; the workers build one batch together.

    Iterating gives lists of what the data set's items collate to, (images (c, ...), labels (c,)): one list per batch
    of `sampler`, holding the share of process `rank`.

    Args:
        dataset: map-style; items must be tensors of equal shape, or what torch can collate.
        sampler: draws the batches, the same on every process.
        chunk_size: largest number of items in a chunk, from 1.
        rank: number of this process.
        world_size: number of processes.
        kwargs: for `torch.utils.data.DataLoader`.

    Raises:
        ValueError: for a `chunk_size` below 1, or a batch that the processes cannot share evenly.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: ClassBalancedBatchSampler,
        chunk_size: int,
        rank: int = 0,
        world_size: int = 1,
        **kwargs: Any,
    ) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
        if sampler.batch_size % world_size:
            raise ValueError(f"batch_size={sampler.batch_size} must be a multiple of the {world_size} processes.")
        self.sampler = sampler  # Lightning calls its set_epoch
        self.chunks = ChunkSampler(sampler, chunk_size, rank, world_size)
        self.loader: DataLoader[Any] = DataLoader(dataset, batch_sampler=self.chunks, **kwargs)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Any]]:
        """One epoch of batches, each a list of chunks."""
        chunks = iter(self.loader)
        for _ in range(len(self)):
            yield list(islice(chunks, self.chunks.chunks_per_batch))
