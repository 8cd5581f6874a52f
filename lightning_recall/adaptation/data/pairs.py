"""Training batches of two domains: each item is a pair of a source image with its label, and a target image."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lightning_recall.data import ChunkLoader


class DomainPairs(Dataset[tuple[Tensor, int, Tensor]]):
    """Items (source image, label, target image) of a pair of indices; labels of the target are never read.

    Args:
        source: items (image, label).
        target: items (image, label), or images.
    """

    def __init__(self, source: Any, target: Any) -> None:
        self.source, self.target = source, target

    def __getitem__(self, indices: tuple[int, int]) -> tuple[Tensor, int, Tensor]:
        """The images and the label at (source index, target index)."""
        image, label = self.source[indices[0]]
        other = self.target[indices[1]]
        return image, label, other[0] if isinstance(other, tuple | list) else other


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) without torch.distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class PairedBatchSampler:
    """Batches of shuffled pairs (source index, target index); the order depends only on `seed` and the epoch.

    An epoch ends with the smaller domain.
    """

    def __init__(self, num_source: int, num_target: int, batch_size: int, seed: int = 0) -> None:
        self.num_source, self.num_target, self.batch_size = num_source, num_target, batch_size
        self.seed, self.epoch = seed, 0

    @property
    def local_slice(self) -> slice:
        """The slice of each batch that this process yields."""
        rank, world_size = rank_and_world_size()
        size = self.batch_size // world_size
        return slice(rank * size, (rank + 1) * size)

    @property
    def sampler(self) -> "PairedBatchSampler":
        """This object: Lightning calls `set_epoch` on the `sampler` of a batch sampler, not on itself."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch

    def settings(self) -> dict[str, Any]:
        """Settings that determine the batches of an epoch."""
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "num_source": self.num_source,
            "num_target": self.num_target,
        }

    def __len__(self) -> int:
        """Batches in an epoch."""
        return min(self.num_source, self.num_target) // self.batch_size

    def __iter__(self) -> Iterator[list[Any]]:
        """This process's slice of each batch; the next iteration is the next epoch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        source, target = rng.permutation(self.num_source), rng.permutation(self.num_target)
        self.epoch += 1
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            part = slice(start, start + self.batch_size)
            pairs = zip(source[part].tolist(), target[part].tolist(), strict=True)
            yield list(pairs)[self.local_slice]


class PairedLoader(ChunkLoader):
    """Training batches {"source": (images, labels), "target": images}; see `ChunkLoader` for resuming."""

    def __init__(self, dataset: Any, sampler: PairedBatchSampler, **kwargs: Any) -> None:
        super().__init__(dataset, sampler, chunk_size=sampler.batch_size, collate_fn=collate, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        """One epoch of batches; after `load_state_dict`, the rest of that epoch."""
        for (batch,) in super().__iter__():
            yield batch


def collate(items: list[tuple[Tensor, int, Tensor]]) -> dict[str, Any]:
    """{"source": (images (B, 3, H, W), labels (B,)), "target": images (B, 3, H, W)}."""
    images, labels, target = default_collate(items)
    return {"source": (images, labels), "target": target}
