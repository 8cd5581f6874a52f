"""Pooling of feature maps and tokens to vectors."""

import torch
from torch import Tensor, nn

from lightning_recall.checks import check_above_zero
from lightning_recall.constructor_arguments import record_arguments
from lightning_recall.tensors import at_least_float32


@record_arguments
class GeM(nn.Module):
    """Generalised-mean pooling: the p-th root of the mean of the p-th powers.

    p = 1 is average pooling; as p approaches infinity, it approaches max pooling.

    Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019
    (arXiv 1711.02512).

    Args:
        p: initial value of the learned exponent, above 0.
        eps: lower bound to which activations are clamped, above 0, since powers of 0 have no gradient.

    Activations are divided by the maximum of their map and raised to p in fp32 or fp64, to avoid overflow and
    underflow.

    Shapes: features (B, C, H, W) -> (B, C), in the promoted dtype of features and p: fp16 for an fp16 module, fp32
    under autocast.

    Raises:
        ValueError: for settings out of range.

    >>> GeM(p=3.0)(torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)).detach()  # cube root of 25
    tensor([[2.9240]])
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        check_above_zero(p=p)
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.eps = eps
        self.check_settings()

    def check_settings(self) -> None:
        """Raises ValueError for an `eps` out of range."""
        check_above_zero(eps=self.eps)

    def forward(self, features: Tensor) -> Tensor:
        """Pools (B, C, H, W) to (B, C)."""
        self.check_settings()
        activations = at_least_float32(features).clamp(min=self.eps)
        p = self.p.to(activations.dtype)
        largest = activations.detach().amax((2, 3), keepdim=True)  # (B, C, 1, 1)
        pooled = (activations / largest).pow(p).mean((2, 3)).pow(1 / p) * largest.flatten(1)
        return pooled.to(torch.promote_types(features.dtype, self.p.dtype))


class ClassToken(nn.Module):
    """The first token: (B, N, C) -> (B, C)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Picks the first of (B, N, C)."""
        return tokens[:, 0]


def as_maps(features: Tensor, layout: str, num_prefix_tokens: int) -> Tensor:
    """Features as maps (B, C, H, W), without copying; patch tokens become maps of width 1.

    Args:
        features: (B, C, H, W); (B, H, W, C) if layout is "channels last"; (B, N, C) if it is "tokens".
        layout: see `lightning_recall.models.backbones.Layout`.
        num_prefix_tokens: number of tokens before the patch tokens.
    """
    if layout == "channels last":
        return features.permute(0, 3, 1, 2)
    return features[:, num_prefix_tokens:].transpose(1, 2).unsqueeze(3) if layout == "tokens" else features
