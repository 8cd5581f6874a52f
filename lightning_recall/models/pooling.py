"""Pooling of feature maps to vectors."""

import torch
from torch import Tensor, nn


class GeM(nn.Module):
    """Generalised-mean pooling: the p-th root of the mean of the p-th powers, between mean (p = 1) and maximum.

    Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.

    Args:
        p: start of the learned exponent, above 0.
        eps: activations are raised to at least this, above 0, since powers of zero have no gradient.

    Shapes: features (B, C, H, W) -> (B, C).

    >>> GeM(p=3.0)(torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)).detach()  # cube root of 25
    tensor([[2.9240]])
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        if not p > 0 or not eps > 0:
            raise ValueError(f"p and eps must be above 0, got p={p}, eps={eps}.")
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """Pools (B, C, H, W) to (B, C)."""
        return features.clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1 / self.p)
