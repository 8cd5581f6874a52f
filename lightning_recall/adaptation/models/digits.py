"""Networks for 32 x 32 images, with layers and initial weights of the released code of DM-ADA (arXiv 1912.01805)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

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


class DomainDiscriminator(nn.Module):
    """Two linear layers for DANN: features (B, D) -> logits (B,), positive for the source. The sizes are our choice.

    Args:
        feature_dim: D, at least 1.
        hidden_dim: width of the layer between, at least 1.

    Raises:
        ValueError: for numbers out of range.

    >>> DomainDiscriminator(feature_dim=128)(torch.zeros(2, 128)).shape
    torch.Size([2])
    """

    def __init__(self, feature_dim: int, hidden_dim: int = 128) -> None:
        super().__init__()
        check_integer("feature_dim", feature_dim, 1)
        check_integer("hidden_dim", hidden_dim, 1)
        self.layers = nn.Sequential(nn.Linear(feature_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, 1))
        initialize(self)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B,), positive for the source."""
        logits: Tensor = self.layers(features)
        return logits.squeeze(1)


class Upsampling(nn.ConvTranspose2d):
    """A transposed convolution without bias, computed as a matrix product for inputs of at most 2 x 2 pixels.

    On a CPU the product is several times faster there, and equal up to rounding.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False)
        self.window = (kernel, stride, padding)

    def forward(self, inputs: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Feature maps (B, C, H, W) of the next size."""
        height, width = inputs.shape[-2:]
        if height * width > 4 or output_size is not None:
            return super().forward(inputs, output_size)
        columns = torch.einsum("bcl,cm->bml", inputs.flatten(2), self.weight.flatten(1))
        kernel, stride, padding = self.window
        size = ((height - 1) * stride - 2 * padding + kernel, (width - 1) * stride - 2 * padding + kernel)
        return nn.functional.fold(columns, size, kernel, stride=stride, padding=padding)


class DigitGenerator(nn.Module):
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
        super().__init__()
        check_integer("input_dim", input_dim, 1)
        check_integer("width", width, 1)
        self.input_dim = input_dim
        channels = [8 * width, 4 * width, 2 * width, width]
        layers: list[nn.Module] = [Upsampling(input_dim, channels[0], 2)]
        for before, after in zip(channels, [*channels[1:], 3], strict=True):
            layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True), Upsampling(before, after, 4, 2, 1)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        initialize(self)

    def forward(self, vectors: Tensor) -> Tensor:
        """Images (B, 3, 32, 32)."""
        images: Tensor = self.layers(vectors[:, :, None, None])
        return images


class Judgement(NamedTuple):
    """What a discriminator returns: class logits (B, K), an embedding (B, E), and logits (B,) of real source images."""

    classes: Tensor
    embedding: Tensor
    source: Tensor


class DigitDiscriminator(nn.Module):
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
        super().__init__()
        check_integer("num_classes", num_classes, 2)
        check_integer("width", width, 1)
        check_integer("embedding_dim", embedding_dim, 1)
        self.num_classes = num_classes
        channels = [3, width, 2 * width, 4 * width, 2 * width]
        layers: list[nn.Module] = []
        for before, after, pool in zip(channels, channels[1:], (2, 2, 2, 4), strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after)]
            layers += [nn.MaxPool2d(pool), nn.LeakyReLU(0.2, inplace=True)]  # equal to the reverse order, but faster
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.classes = nn.Linear(2 * width, num_classes)
        self.embedding = nn.Linear(2 * width, embedding_dim)
        self.source = nn.Linear(embedding_dim, 1)
        initialize(self)

    def forward(self, images: Tensor) -> Judgement:
        """Class logits, embeddings and source logits of images."""
        features = self.layers(images)
        embedding = self.embedding(features)
        return Judgement(self.classes(features), embedding, self.source(embedding).squeeze(1))


def initialize(network: nn.Module) -> None:
    """Draws the initial weights as the released code does.

    Normal distributions: (transposed) convolutions N(0, 0.02), linear layers N(0, 0.1), BatchNorm N(1, 0.02). Biases
    of linear layers and BatchNorm are 0; those of convolutions keep torch's default.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.1)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)
