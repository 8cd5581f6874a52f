"""Networks for 28 x 28 images of the released code of RevGrad with domain mixup (arXiv 1912.01805)."""

from torch import Tensor, nn

CHANNELS = (64, 50)


class DANNEncoder(nn.Module):
    """Two convolutions with BatchNorm: images (B, 3, 28, 28) -> features (B, 800).

    Attributes:
        feature_dim: 800.
        mean: mean of each channel by which the released code normalises images in [0, 1].
        std: the same for the standard deviation.

    >>> import torch
    >>> DANNEncoder()(torch.zeros(2, 3, 28, 28)).shape
    torch.Size([2, 800])
    """

    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.feature_dim = CHANNELS[1] * 4 * 4
        self.layers = nn.Sequential(
            nn.Conv2d(3, CHANNELS[0], 5),
            nn.BatchNorm2d(CHANNELS[0]),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),  # (B, 64, 12, 12)
            nn.Conv2d(CHANNELS[0], CHANNELS[1], 5),
            nn.BatchNorm2d(CHANNELS[1]),
            nn.Dropout2d(),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),  # (B, 50, 4, 4)
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 800) of normalised images (B, 3, 28, 28)."""
        features: Tensor = self.layers(images)
        return features


class DANNClassifier(nn.Module):
    """Three linear layers with BatchNorm and dropout: features (B, D) -> logits (B, K).

    Args:
        feature_dim: D.
        num_classes: K.
        hidden_dim: width of the two hidden layers; the released code has 100.
    """

    def __init__(self, feature_dim: int, num_classes: int, hidden_dim: int = 100) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Linear(feature_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, num_classes),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, D)."""
        logits: Tensor = self.layers(features)
        return logits
