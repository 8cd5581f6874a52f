"""Pooling of feature maps to vectors."""

import torch
from torch import Tensor, nn


class GeM(nn.Module):
    """Generalised-mean pooling: the p-th root of the mean of the p-th powers, between mean (p = 1) and maximum.

    Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.

    Args:
        p: start of the learned exponent, above 0.
        eps: activations are raised to at least this, above 0, since powers of zero have no gradient.

    Powers are taken in fp32, or fp64, of the activations divided by the largest of their map, so that none overflows
    and none vanishes.

    Shapes: features (B, C, H, W) -> (B, C), in the larger type of features and exponent: fp16 of a module in fp16,
    fp32 under autocast.

    Raises:
        ValueError: for settings out of range.

    >>> GeM(p=3.0)(torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)).detach()  # cube root of 25
    tensor([[2.9240]])
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        if not p > 0:
            raise ValueError(f"p must be above 0, got {p}.")
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.eps = eps
        self.check_settings()

    def check_settings(self) -> None:
        """Raises ValueError for an `eps` out of range."""
        if not self.eps > 0:
            raise ValueError(f"eps must be above 0, got {self.eps}.")

    def forward(self, features: Tensor) -> Tensor:
        """Pools (B, C, H, W) to (B, C)."""
        self.check_settings()
        exact = features if features.dtype == torch.float64 else features.float()
        exact, p = exact.clamp(min=self.eps), self.p.to(exact.dtype)
        largest = exact.detach().amax((2, 3), keepdim=True)  # (B, C, 1, 1)
        pooled = (exact / largest).pow(p).mean((2, 3)).pow(1 / p) * largest.flatten(1)
        return pooled.to(torch.promote_types(features.dtype, self.p.dtype))
