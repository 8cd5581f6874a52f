"""A small U-Net: trains from scratch on a CPU."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recall.checks import check_integer


def conv_norm_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """3 x 3 convolution that keeps the size, BatchNorm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class SmallUNet(nn.Module):
    """An encoder of four levels and a decoder with skip connections; 0.44 million parameters with 16 channels.

    After Ronneberger, Fischer, Brox, MICCAI 2015 (arXiv 1505.04597). Our choices: a sixteenth of the channels, three
    poolings instead of four, one convolution per decoder level, padded convolutions, BatchNorm.

    Args:
        num_classes: C, number of classes.
        channels: channels of the first level; each level has twice those of the level before.
        in_channels: channels of an image.

    Shapes: images (B, in_channels, H, W), normalised, of any height and width -> logits (B, num_classes, H, W).

    Raises:
        ValueError: for an argument below 1.

    >>> SmallUNet(num_classes=5)(torch.zeros(2, 3, 50, 70)).shape
    torch.Size([2, 5, 50, 70])
    """

    def __init__(self, num_classes: int, channels: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("channels", channels), ("in_channels", in_channels)):
            check_integer(name, value, 1)
        self.num_classes = num_classes
        widths = [channels, 2 * channels, 4 * channels, 8 * channels]
        self.encoder = nn.ModuleList(
            nn.Sequential(conv_norm_relu(before, width), conv_norm_relu(width, width))
            for before, width in pairwise([in_channels, *widths])
        )
        self.decoder = nn.ModuleList(conv_norm_relu(deep + width, width) for width, deep in pairwise(widths))
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W) of normalised images (B, in_channels, H, W)."""
        skips = []
        maps = images
        for number, level in enumerate(self.encoder):
            if number:
                skips.append(maps)
                maps = F.max_pool2d(maps, 2, ceil_mode=True)
            maps = level(maps)
        for layer, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            maps = layer(torch.cat([F.interpolate(maps, skip.shape[-2:], mode="nearest"), skip], dim=1))
        logits: Tensor = self.classifier(maps)
        return logits
