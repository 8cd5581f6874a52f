"""Test-time augmentation: averages embeddings over scales and horizontal flips."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recall.constructor_arguments import record_arguments


@record_arguments
class MultiScale(nn.Module):
    """Sums the normalised embeddings of an image over several scales and its horizontal flip, and normalises the sum.

    For evaluation: `RetrievalModule(test_time_augmentation=MultiScale())`. Needs one forward pass per scale and flip.
    Whether a scale helps depends on the network and its pooling: convnets with GeM accept any image size, most ViTs
    only their training size.

    Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019
    (arXiv 1711.02512). The authors' code evaluates at the scales 1, 1/sqrt(2) and 1/2.

    Args:
        scales: scale factors for height and width, above 0; (1,) uses only the original size.
        flip: whether to add the horizontal flip.

    Raises:
        ValueError: if scales is empty or contains a value that is not above 0.

    >>> embedder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> MultiScale()(embedder, torch.rand(2, 3, 32, 32)).shape
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
            resized = images if scale == 1 else rescale(images, scale)
            for augmented in (resized, resized.flip(-1)) if self.flip else (resized,):
                embeddings = F.normalize(embedder(augmented), dim=1)
                total = embeddings if total is None else total + embeddings
        assert total is not None  # scales is not empty
        return F.normalize(total, dim=1)


def rescale(images: Tensor, scale: float) -> Tensor:
    """Resizes images (B, C, H, W) by `scale`, to at least 1 pixel; keeps uint8."""
    size = [max(round(length * scale), 1) for length in images.shape[-2:]]
    floats = images.float() if images.dtype == torch.uint8 else images
    resized = F.interpolate(floats, size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else resized
