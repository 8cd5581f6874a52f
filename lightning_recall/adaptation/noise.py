"""Noise of a batch that several processes share."""

import torch
from torch import Tensor

from lightning_recall.data.batches import rank_and_world_size


def local_noise(size: int, dim: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise (size, dim): this process's rows of the noise of the whole batch.

    Args:
        size: images of this process, the same number on each.
        dim: numbers for each image.
        generator: in the same state on all processes; each draws the noise of all.

    >>> local_noise(2, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """
    rank, world_size = rank_and_world_size()
    noise = torch.randn(world_size * size, dim, generator=generator, dtype=torch.float32)  # whatever the precision
    return noise[rank * size : (rank + 1) * size]
