"""PCA whitening of embeddings, fitted on training images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PCAWhitening(nn.Module):
    """Projects embeddings onto the first `dim` principal components, scales each to unit variance and L2-normalises.

    This reduces the weight of directions along which all images vary most. Fit it on training images, never on test
    images.

    Source: Jegou and Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening",
    ECCV 2012.

    Args:
        embeddings: (N, D) embeddings of training images, with N > dim.
        dim: dimension of the whitened embeddings, at most D; None: D.
        epsilon: added to each variance, as a fraction of the largest, so that noise directions are not amplified.

    Shapes: (B, D) -> (B, dim), with unit L2 norm.

    Raises:
        ValueError: for a `dim` outside 1 to D, or if there are not more than `dim` embeddings.

    >>> train, test = torch.randn(100, 8), torch.randn(5, 8)
    >>> PCAWhitening(train, dim=4)(test).shape
    torch.Size([5, 4])
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, embeddings: Tensor, dim: int | None = None, epsilon: float = 1e-6) -> None:
        super().__init__()
        width = embeddings.shape[1]
        dim = width if dim is None else dim
        if not 1 <= dim <= width or len(embeddings) <= dim:
            raise ValueError(
                f"dim must be from 1 to D = {width} and below the number of embeddings, {len(embeddings)}; got {dim}."
            )
        embeddings64 = embeddings.detach().double()
        mean = embeddings64.mean(0)
        centered = embeddings64 - mean
        variances, directions = torch.linalg.eigh(centered.T @ centered / (len(centered) - 1))  # ascending
        scales = (variances + epsilon * variances[-1]).clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
        projection = (directions * scales).flip(1)[:, :dim]
        self.register_buffer("mean", mean.to(embeddings.dtype))
        self.register_buffer("projection", projection.to(embeddings.dtype))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Whitened embeddings (B, dim)."""
        return F.normalize((embeddings - self.mean) @ self.projection, dim=1)
