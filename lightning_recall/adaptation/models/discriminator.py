"""A domain discriminator of features."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from lightning_recall.checks import check_integer


class FeatureDiscriminator(nn.Module):
    """Linear layers: features (B, D) -> logits (B,), positive for the source domain.

    Two hidden layers of 1024 are those of DANN for Office-31 (Ganin et al., JMLR 2016, arXiv 1505.07818). BatchNorm
    after each of them, or otherwise dropout with a probability of 0.5, are those of tllib. One hidden layer of 100 is
    that of the released DANN with mixup (arXiv 1912.01805), whose two outputs with a softmax are the same function as
    one logit.

    Args:
        feature_dim: D.
        hidden_dims: widths of the hidden layers, one or more.
        norm: "batch": BatchNorm after each hidden layer; None: none.
        dropout: probability of dropping a hidden feature in training, at least 0 and below 1.

    Raises:
        ValueError: for numbers out of range.

    >>> import torch
    >>> FeatureDiscriminator(feature_dim=256)(torch.zeros(2, 256)).shape
    torch.Size([2])
    """

    def __init__(
        self,
        feature_dim: int,
        hidden_dims: Sequence[int] = (1024, 1024),
        norm: Literal["batch"] | None = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_integer("feature_dim", feature_dim, 1)
        if len(hidden_dims) == 0:
            raise ValueError("hidden_dims must hold the width of at least one layer, got [].")
        if norm not in ("batch", None):
            raise ValueError(f"norm must be batch or null, got {norm!r}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}.")
        self.feature_dim = feature_dim
        layers: list[nn.Module] = []
        for before, width in zip([feature_dim, *hidden_dims], hidden_dims, strict=False):
            check_integer("hidden_dims", width, 1)
            layers += [nn.Linear(before, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_dims[-1], 1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B,) of features (B, D)."""
        logits: Tensor = self.layers(features)
        return logits.squeeze(1)
