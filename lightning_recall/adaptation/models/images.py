"""Generator and discriminator of DM-ADA for images larger than digits; with 32 x 32 pixels they are the released ones.

The released code has networks for 32 x 32 pixels only. What is added for larger images is our choice.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_recall.checks import check_integer

SMALLEST = 32


def num_added_stages(image_size: int) -> int:
    """Stages that halve or double the size, besides those for 32 x 32 pixels.

    Raises:
        ValueError: unless `image_size` is a power of two from 32.

    >>> num_added_stages(32), num_added_stages(128)
    (0, 2)
    """
    check_integer("image_size", image_size, SMALLEST)
    if image_size & (image_size - 1):
        raise ValueError(f"image_size must be a power of two from {SMALLEST}, such as 64 or 128, got {image_size}.")
    return int(image_size).bit_length() - SMALLEST.bit_length()


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


class Judgement(NamedTuple):
    """What a discriminator returns: class logits (B, K), an embedding (B, E), and logits (B,) of real source images."""

    classes: Tensor
    embedding: Tensor
    source: Tensor


class ImageGenerator(nn.Module):
    """Transposed convolutions: vectors (B, D) -> images (B, 3, S, S) between -1 and 1.

    The first layers have 8 * `width` channels: one of them for 32 x 32 pixels, one more for each doubling of the size.
    Then the channels halve with each layer, down to `width`.

    Args:
        input_dim: D, the sum of the dimensions of features, condition and noise.
        image_size: S, a power of two from 32.
        width: channels of the last hidden layer, at least 1.

    Raises:
        ValueError: for numbers out of range.

    >>> ImageGenerator(input_dim=20, image_size=64, width=4)(torch.zeros(2, 20)).shape
    torch.Size([2, 3, 64, 64])
    """

    def __init__(self, input_dim: int, image_size: int = 64, width: int = 64) -> None:
        super().__init__()
        check_integer("input_dim", input_dim, 1)
        check_integer("width", width, 1)
        self.input_dim = input_dim
        channels = [8 * width] * (1 + num_added_stages(image_size)) + [4 * width, 2 * width, width]
        layers: list[nn.Module] = [Upsampling(input_dim, channels[0], 2)]  # (B, C, 2, 2)
        for before, after in zip(channels, [*channels[1:], 3], strict=True):
            layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True), Upsampling(before, after, 4, 2, 1)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        initialize(self)

    def forward(self, vectors: Tensor) -> Tensor:
        """Images (B, 3, S, S) of vectors (B, D)."""
        images: Tensor = self.layers(vectors[:, :, None, None])
        return images


class ImageDiscriminator(nn.Module):
    """Convolutions and three heads: images (B, 3, S, S) between -1 and 1 -> `Judgement`.

    Four stages for 32 x 32 pixels, with `width`, 2 * `width`, 4 * `width` and 2 * `width` channels. For each doubling
    of the size, a stage of 4 * `width` channels is added before the last.

    Args:
        num_classes: K, at least 2.
        image_size: S, a power of two from 32.
        width: channels of the first layer, at least 1.
        embedding_dim: E, dimensions of the embedding of the triplet loss, at least 1.

    Raises:
        ValueError: for numbers out of range.

    >>> judgement = ImageDiscriminator(num_classes=5, image_size=64, width=4)(torch.zeros(2, 3, 64, 64))
    >>> [tuple(part.shape) for part in judgement]
    [(2, 5), (2, 64), (2,)]
    """

    def __init__(self, num_classes: int, image_size: int = 64, width: int = 64, embedding_dim: int = 64) -> None:
        super().__init__()
        for name, value, least in (
            ("num_classes", num_classes, 2),
            ("width", width, 1),
            ("embedding_dim", embedding_dim, 1),
        ):
            check_integer(name, value, least)
        self.num_classes = num_classes
        added = num_added_stages(image_size)
        channels = [3, width, 2 * width, *[4 * width] * (1 + added), 2 * width]
        pools = [2] * (3 + added) + [4]
        layers: list[nn.Module] = []
        for before, after, pool in zip(channels, channels[1:], pools, strict=False):
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
