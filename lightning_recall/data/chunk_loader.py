"""A batch is a list of chunks: large batches without a worker that holds one whole."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from lightning_recall.checks import check_integer
from lightning_recall.samplers import ClassBalancedBatchSampler


class Chunk(NamedTuple):
    """Rows of a data set, and where they stand: seed, epoch, number of the batch, place of the first in the batch."""

    rows: list[int]
    seed: int
    epoch: int
    batch: int
    place: int


class ChunkSampler(Sampler[Chunk]):
    """Cuts one process's share of every batch evenly into chunks of at most `chunk_size` rows.

    Attributes:
        skip: batches at the start of the next pass that are left out.
    """

    def __init__(self, batches: ClassBalancedBatchSampler, chunk_size: int) -> None:
        self.batches = batches
        self.chunk_size = chunk_size
        self.skip = 0

    @property
    def cuts(self) -> list[int]:
        """Where the chunks of a batch begin and the last one ends, counted in the whole batch."""
        share = self.batches.local_slice
        size = share.stop - share.start
        count = -(-size // self.chunk_size)
        return [share.start + size * part // count for part in range(count + 1)]

    def __len__(self) -> int:
        """Chunks in an epoch."""
        return len(self.batches) * (len(self.cuts) - 1)

    def __iter__(self) -> Iterator[Chunk]:
        """Chunks of the first batch, then of the second, ..."""
        cuts, seed, epoch = self.cuts, self.batches.seed, self.batches.epoch
        for number, rows in islice(enumerate(self.batches), self.skip, None):
            for start, stop in pairwise(cuts):
                yield Chunk(rows[start - cuts[0] : stop - cuts[0]], seed, epoch, number, start)


class SeededItems:
    """A data set whose items draw random numbers told by their place in the epoch, whoever loads them.

    So an augmentation does not depend on the number of workers, of processes and of chunks, nor on a resume. It may
    draw from the global generators of torch, numpy and Python. A data set with `__getitems__` of its own draws for a
    chunk at a time.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, chunk: Chunk) -> Any:
        """Items of a chunk, in order."""
        with random_state_restored():
            if hasattr(self.dataset, "__getitems__"):
                seed_generators(*chunk[1:])
                return self.dataset.__getitems__(chunk.rows)
            items = []
            for place, row in enumerate(chunk.rows, chunk.place):
                seed_generators(chunk.seed, chunk.epoch, chunk.batch, place)
                items.append(self.dataset[row])
            return items


@contextmanager
def random_state_restored() -> Iterator[None]:
    """Gives the process its random numbers back: with num_workers=0 it is the training process."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  # what data sets draw from
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002  # what data sets draw from
        torch.set_rng_state(states[2])


def seed_generators(*key: int) -> None:
    """Seeds the global CPU generators of torch, numpy and Python from some integers."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # what data sets draw from
    torch.default_generator.manual_seed(seed)


class ChunkLoader:
    """Loads class-balanced batches as lists of chunks; the workers build one batch together.

    Iterating gives lists of what the data set's items collate to, (images (c, ...), labels (c,)): one list per batch
    of `sampler`, holding this process's share. The order and the augmentation are told by the sampler's seed and
    epoch: the same with any number of workers, chunks and processes.

    `state_dict` holds the position and the settings that the batches depend on; with it, Lightning resumes in the
    middle of an epoch. A part of an epoch that `load_state_dict` skips is not loaded.

    Args:
        dataset: map-style; items must be tensors of equal shape, or what torch can collate.
        sampler: draws the batches, the same on every process.
        chunk_size: largest number of items in a chunk, from 1.
        kwargs: for `torch.utils.data.DataLoader`.

    Raises:
        ValueError: for a `chunk_size` that is no integer from 1; when a pass begins, if it continues an epoch that was
            drawn with other settings.
    """

    def __init__(self, dataset: Any, sampler: ClassBalancedBatchSampler, chunk_size: int, **kwargs: Any) -> None:
        check_integer("chunk_size", chunk_size, 1)
        self.sampler = sampler  # Lightning calls its set_epoch
        self.chunks = ChunkSampler(sampler, chunk_size)
        generator = torch.Generator().manual_seed(int(sampler.seed))  # else workers start from a draw of torch's
        self.loader: DataLoader[Any] = DataLoader(
            SeededItems(dataset),  # type: ignore[arg-type]  # no Dataset, but __getitems__ is all that is called
            batch_sampler=self.chunks,  # type: ignore[arg-type]  # torch hands chunks to __getitems__ as they are
            generator=generator,
            **kwargs,
        )
        self.epoch = self.batches = 0  # batches that were taken of this epoch
        self.num_batches: int | None = None  # of this epoch; None before the first pass
        self.resumed: dict[str, Any] | None = None  # the state to continue from, until a pass begins

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Any]]:
        """One epoch of batches, each a list of chunks; after `load_state_dict`, what is left of that epoch."""
        self.epoch, self.batches = self.sampler.epoch, 0
        self.num_batches = len(self)  # once the pass has begun, the sampler's length is the next epoch's
        if self.resumed is not None and self.resumed["epoch"] == self.epoch:
            self.batches = self.batches_taken(self.resumed)
        self.resumed = None
        self.chunks.skip = self.batches
        count, length = len(self.chunks.cuts) - 1, self.num_batches
        chunks = iter(self.loader)
        while self.batches < length:
            self.batches += 1
            yield list(islice(chunks, count))

    def batches_taken(self, state: dict[str, Any]) -> int:
        """Batches of this epoch that a saved pass has given; all of them if it was at its end.

        Raises:
            ValueError: if the pass was in the middle of the epoch, and its settings were others.
        """
        taken: int = state["batches"]
        if not taken or taken == state.get("num_batches"):
            return len(self) if taken else 0
        for name, value in self.settings().items():
            if state.get(name, value) != value:  # earlier versions saved no settings
                raise ValueError(
                    f"Cannot resume in the middle of epoch {self.epoch} with {name}={value}: the epoch was begun with "
                    f"{name}={state[name]}. Keep {name}={state[name]}, or resume from the end of an epoch."
                )
        return taken

    def settings(self) -> dict[str, Any]:
        """What the batches of an epoch depend on; `torch.load(weights_only=True)` takes it."""
        sampler, count = self.sampler, self.sampler.super_classes
        return {
            "batch_size": int(sampler.batch_size),
            "samples_per_class": int(sampler.samples_per_class),
            "seed": int(sampler.seed),
            "num_images": sampler.num_images,
            "tail": sampler.tail,
            "epoch_order": sampler.epoch_order,
            "super_classes": None if count is None else int(count),
        }

    def state_dict(self) -> dict[str, Any]:
        """The epoch, how many of its batches were given, and the settings that they depend on."""
        if self.resumed is not None:
            return self.resumed
        return {"epoch": self.epoch, "batches": self.batches, "num_batches": self.num_batches, **self.settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next pass continue from there, if it is a pass of that epoch."""
        self.resumed = dict(state)
        self.sampler.set_epoch(state["epoch"])
