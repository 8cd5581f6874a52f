"""Noise of a batch that several processes share."""

import torch
from torch import Tensor, distributed


def local_noise(size: int, dim: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise (size, dim): this process's rows of the noise of the whole batch.

    Args:
        size: images of this process, the same number on each.
        dim: numbers for each image.
        generator: in the same state on all processes; each draws the noise of all.

    >>> local_noise(2, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """
    is_distributed = distributed.is_available() and distributed.is_initialized()
    rank, world_size = (distributed.get_rank(), distributed.get_world_size()) if is_distributed else (0, 1)
    return torch.randn(world_size * size, dim, generator=generator)[rank * size : (rank + 1) * size]
