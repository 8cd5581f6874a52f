"""Embeds several views of an image as one: scales and the mirror image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiView(nn.Module):
    """Sums the unit embeddings of an image at several scales, and of its mirror image, and scales the sum to length 1.

    For tests: `RetrievalModule(test_time_augmentation=MultiView())`. Costs a pass of the embedder for each view; what a scale adds
    depends on the network and its pooling: convnets with GeM take any size, most ViTs only their own.

    Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", PAMI 2019,
    which takes the scales 1, 1/sqrt(2) and sqrt(2).

    Args:
        scales: of the images' height and width, above 0; (1,) leaves them as they are.
        flip: whether the mirror image counts too.

    Raises:
        ValueError: for no scale, or one that is not above 0.

    >>> embedder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> MultiView()(embedder, torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 3])
    """

    def __init__(self, scales: Sequence[float] = (1.0, 0.7071, 1.4142), flip: bool = True) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.flip = flip
        self.check_settings()

    def check_settings(self) -> None:
        """Raises ValueError for settings out of range; called by every `forward`, since settings may change."""
        if not self.scales or not min(self.scales) > 0:
            raise ValueError(f"scales must be one or more numbers above 0, got {tuple(self.scales)}.")

    def forward(self, embedder: nn.Module, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images (B, C, H, W), uint8 or floats."""
        self.check_settings()
        total = None
        for scale in self.scales:
            resized = images if scale == 1 else rescaled(images, scale)
            for view in (resized, resized.flip(-1)) if self.flip else (resized,):
                embeddings = F.normalize(embedder(view), dim=1)
                total = embeddings if total is None else total + embeddings
        assert total is not None  # there is a scale
        return F.normalize(total, dim=1)


def rescaled(images: Tensor, scale: float) -> Tensor:
    """Images (B, C, H, W) with height and width times `scale`, at least 1; uint8 stays so."""
    size = [max(round(length * scale), 1) for length in images.shape[-2:]]
    floats = images.float() if images.dtype == torch.uint8 else images
    resized = F.interpolate(floats, size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else resized
