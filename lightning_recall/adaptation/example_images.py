"""Images for pictures of a training: both domains, and their mixes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_recall.adaptation.domain_mixup import mix_domains


def domain_images(source: Tensor, target: Tensor, ratios: Sequence[float]) -> dict[str, Tensor]:
    """The images of both domains, and their mix for each ratio, as the pixel level of `DomainMixup` makes it.

    Args:
        source: images (B, 3, H, W) between 0 and 1.
        target: images (B, 3, H, W) between 0 and 1.
        ratios: share of the source in each mix, from 0 to 1.

    Returns:
        uint8 images (B, 3, H, W): "source", "target", and "mixed RATIO" for each ratio.

    Raises:
        ValueError: for different shapes, or a ratio outside [0, 1].

    >>> images = domain_images(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), ratios=[0.8])
    >>> {name: int(image.max()) for name, image in images.items()}
    {'source': 255, 'target': 0, 'mixed 0.8': 204}
    """
    mixed = {f"mixed {ratio:g}": mix_domains(source, target, ratio) for ratio in ratios}
    return {name: to_uint8(images) for name, images in {"source": source, "target": target, **mixed}.items()}


def to_uint8(images: Tensor) -> Tensor:
    """Images between 0 and 1 as uint8, from 0 to 255."""
    return images.detach().float().mul(255).round().clamp(0, 255).to(torch.uint8)
