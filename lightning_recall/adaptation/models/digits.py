"""Networks for 32 x 32 images, with layers and initial weights of the released code of DM-ADA (arXiv 1912.01805)."""

import torch
from torch import Tensor, nn

from lightning_recall.adaptation.models.images import ImageDiscriminator, ImageGenerator, initialize
from lightning_recall.checks import check_integer

IMAGE_SIZE = 32


class DigitEncoder(nn.Module):
    """Three convolutions: images (B, 3, 32, 32) -> features (B, 128).

    Attributes:
        feature_dim: number of features, 2 * `width`.
        mean: mean of each channel by which the released code normalises images in [0, 1].
        std: the same for the standard deviation.

    Args:
        width: channels of the first two layers; at least 1. The released code has 64.

    >>> DigitEncoder()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 128])
    """

    mean = (0.44, 0.44, 0.44)
    std = (0.19, 0.19, 0.19)

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        check_integer("width", width, 1)
        self.feature_dim = 2 * width
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),  # (B, width, 14, 14)
            nn.Conv2d(width, width, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),  # (B, width, 5, 5)
            nn.Conv2d(width, 2 * width, 5),
            nn.ReLU(inplace=True),
            nn.Flatten(),
        )
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 128) of normalised images (B, 3, 32, 32)."""
        features: Tensor = self.layers(images)
        return features


class GaussianEncoder(nn.Module):
    """Mean and log-variance of a Gaussian in the latent space, from the features of any network.

    The outputs are two linear layers, as in the released code. Nothing is sampled: both are used as features, and a
    KL divergence draws them towards the standard normal distribution.

    Args:
        backbone: images (B, 3, H, W) -> features (B, D); its `feature_dim` is D.
        latent_dim: dimensions of the mean and of the log-variance; at least 1.

    Attributes:
        feature_dim: 2 * `latent_dim`.

    >>> GaussianEncoder(DigitEncoder(), latent_dim=128)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 256])
    """

    def __init__(self, backbone: nn.Module, latent_dim: int = 128) -> None:
        super().__init__()
        check_integer("latent_dim", latent_dim, 1)
        self.backbone = backbone
        self.feature_dim = 2 * latent_dim
        self.mu = nn.Linear(int(backbone.feature_dim), latent_dim)  # type: ignore[arg-type]  # nn.Module attributes are typed Tensor or Module
        self.log_variance = nn.Linear(self.mu.in_features, latent_dim)
        initialize(self.mu)
        initialize(self.log_variance)
        self.mean, self.std = getattr(backbone, "mean", None), getattr(backbone, "std", None)

    def forward(self, images: Tensor) -> Tensor:
        """Means and log-variances, concatenated: (B, 2 * latent_dim)."""
        features = self.backbone(images)
        return torch.cat([self.mu(features), self.log_variance(features)], dim=1)


class FeatureClassifier(nn.Module):
    """Two linear layers: features (B, D) -> logits (B, K), with the initial weights of the released code.

    Args:
        feature_dim: D, at least 1.
        num_classes: K, at least 2.
        hidden_dim: width of the layer between, at least 1; the released code has 128.

    Raises:
        ValueError: for numbers out of range.

    >>> FeatureClassifier(feature_dim=256, num_classes=10)(torch.zeros(2, 256)).shape
    torch.Size([2, 10])
    """

    def __init__(self, feature_dim: int, num_classes: int, hidden_dim: int = 128) -> None:
        super().__init__()
        check_integer("feature_dim", feature_dim, 1)
        check_integer("num_classes", num_classes, 2)
        check_integer("hidden_dim", hidden_dim, 1)
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Linear(feature_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, num_classes)
        )
        initialize(self)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, D)."""
        logits: Tensor = self.layers(features)
        return logits


class DigitGenerator(ImageGenerator):
    """Transposed convolutions: vectors (B, D) -> images (B, 3, 32, 32) between -1 and 1.

    Args:
        input_dim: D, the sum of the dimensions of features, condition and noise; at least 1.
        width: channels of the last hidden layer, at least 1; the released code has 64.

    Attributes:
        input_dim: D.

    Raises:
        ValueError: for numbers out of range.

    >>> DigitGenerator(input_dim=779)(torch.zeros(2, 779)).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(self, input_dim: int, width: int = 64) -> None:
        super().__init__(input_dim, IMAGE_SIZE, width)


class DigitDiscriminator(ImageDiscriminator):
    """Four convolutions and three heads: images (B, 3, 32, 32) between -1 and 1 -> `Judgement`.

    Args:
        num_classes: K, at least 2.
        width: channels of the first layer, at least 1; the released code has 64.
        embedding_dim: E, dimensions of the embedding of the triplet loss, at least 1; the released code has 64.

    Attributes:
        num_classes: K.

    Raises:
        ValueError: for numbers out of range.

    >>> [tuple(head.shape) for head in DigitDiscriminator(num_classes=10)(torch.zeros(2, 3, 32, 32))]
    [(2, 10), (2, 64), (2,)]
    """

    def __init__(self, num_classes: int, width: int = 64, embedding_dim: int = 64) -> None:
        super().__init__(num_classes, IMAGE_SIZE, width, embedding_dim)
