"""Fewer dimensions: the leading ones, or principal components."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.checks import check_integer
from lightning_recall.search import EmbeddingBlocks

BLOCK_SIZE = 4096  # embeddings that are projected at a time


def truncate(embeddings: Tensor, dim: int) -> Tensor:
    """The first `dim` dimensions, scaled to unit length.

    Networks whose loss also compares leading dimensions (Kusupati et al., "Matryoshka Representation Learning", NeurIPS
    2022) lose little. Others lose more than by `PCA`.

    Args:
        embeddings: (N, D) floating point.
        dim: 1 to D.

    Returns:
        (N, dim) of the same dtype.

    Raises:
        ValueError: for a `dim` out of range.

    >>> truncate(torch.tensor([[3.0, 4.0, 12.0]]), 2)
    tensor([[0.6000, 0.8000]])
    """
    check_integer("dim", dim, 1)
    if dim > embeddings.shape[1]:
        raise ValueError(f"dim must be at most {embeddings.shape[1]}, the dimension of the embeddings, got {dim}.")
    return F.normalize(embeddings[:, :dim], dim=1)


class PCA:
    """Principal components of unit embeddings: centres, rotates, and keeps the directions of largest variance.

    Unlike `lightning_recall.models.PCAWhitening`, it does not scale the components, so that few dimensions change
    similarities as little as possible.

    Source: Hotelling, "Analysis of a complex of statistical variables into principal components", 1933.

    Args:
        mean: (D,) mean of the unit embeddings that it was fitted on.
        components: (C, D) orthonormal directions, by descending variance.

    >>> images = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    >>> PCA.fit(images)(images, 4).shape
    torch.Size([100, 4])
    """

    def __init__(self, mean: Tensor, components: Tensor) -> None:
        self.mean, self.components = mean, components

    @classmethod
    def fit(cls, embeddings: Tensor | EmbeddingBlocks) -> Self:
        """Fits all components, in float64, one block at a time.

        Args:
            embeddings: (N, D), N of at least 2; they are scaled to unit length.

        Returns:
            min(D, N - 1) components: N embeddings do not vary in more directions.

        Raises:
            ValueError: for fewer than 2 embeddings.
        """
        blocks = embeddings if isinstance(embeddings, EmbeddingBlocks) else EmbeddingBlocks(embeddings)
        if len(blocks) < 2:
            raise ValueError(f"PCA must be fitted on at least 2 embeddings, got {len(blocks)}.")
        parts = [
            torch.arange(start, min(start + BLOCK_SIZE, len(blocks))) for start in range(0, len(blocks), BLOCK_SIZE)
        ]
        mean = torch.stack([blocks.select(part).sum(0) for part in parts]).sum(0) / len(blocks)  # (D,)
        covariance = mean.new_zeros(len(mean), len(mean))
        for part in parts:
            centered = blocks.select(part) - mean
            covariance += centered.T @ centered
        components = torch.linalg.eigh(covariance).eigenvectors.flip(1).T  # (D, D), by descending variance
        return cls(mean.float(), components[: len(blocks) - 1].float().contiguous())

    def __call__(self, embeddings: Tensor | EmbeddingBlocks, dim: int) -> Tensor:
        """Unit embeddings (N, dim), float32, on the first `dim` components.

        Args:
            embeddings: (N, D); they are scaled to unit length first.
            dim: 1 to the number of components.

        Raises:
            ValueError: for a `dim` out of range.
        """
        check_integer("dim", dim, 1)
        if dim > len(self.components):
            raise ValueError(
                f"dim must be at most {len(self.components)}, the number of components, got {dim}: fit PCA on more "
                "embeddings than dimensions."
            )
        blocks = embeddings if isinstance(embeddings, EmbeddingBlocks) else EmbeddingBlocks(embeddings)
        projected = torch.empty(len(blocks), dim)
        for start in range(0, len(blocks), BLOCK_SIZE):
            block = blocks.block(start, min(start + BLOCK_SIZE, len(blocks)))
            projected[start : start + len(block)] = (block - self.mean) @ self.components[:dim].T
        return F.normalize(projected, dim=1)
