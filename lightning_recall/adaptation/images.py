"""Images of a batch: checks, the range from 0 to 1, and normalisation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from lightning_recall.batch import type_and_shape
from lightning_recall.data.channel_statistics import channel_values, check_normalization

LOWEST, HIGHEST = -0.5, 1.5  # of images between 0 and 1, which interpolation may exceed a little
ChannelValues = tuple[float, ...]
"""one number for each channel"""


def unit_range(images: Tensor, dtype: torch.dtype | str) -> Tensor:
    """Images of a floating-point type, such as that of the networks; uint8 images are divided by 255."""
    return images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)


def normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, encoder: nn.Module
) -> tuple[ChannelValues, ChannelValues]:
    """Mean and standard deviation of images in [0, 1]: those given, or those of the encoder, or 0 and 1.

    Raises:
        ValueError: for numbers that are not finite, a standard deviation that is not above 0, or different lengths.
    """
    means = channel_values(mean, getattr(encoder, "mean", None), (0.0,) * (3 if std is None else len(std)))
    stds = channel_values(std, getattr(encoder, "std", None), (1.0,) * len(means))
    check_normalization(means, stds)
    return means, stds


def normalized(images: Tensor, mean: ChannelValues, std: ChannelValues) -> Tensor:
    """(images - mean) / std, with images (B, C, H, W).

    Raises:
        ValueError: for another number of channels than that of mean and std.
    """
    if images.shape[1] != len(mean):
        raise ValueError(
            f"Images have {images.shape[1]} channels, but mean and std hold {len(mean)} numbers: convert the images of "
            "both domains to RGB, or set mean and std."
        )
    result: Tensor = tv.normalize(images, list(mean), list(std))
    return result


def check_images(images: Any, name: str) -> None:
    """Raises ValueError unless images are a tensor (B, C, H, W) with at least one image."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise ValueError(f"The {name} images must be a tensor (B, 3, H, W), got {type_and_shape(images)}.")
    if len(images) == 0:
        raise ValueError(f"A batch has no {name} images: use drop_last=True, or leave out empty batches.")


def check_range(images: Tensor) -> None:
    """Raises ValueError for floating-point images whose values are not between 0 and 1; uint8 images pass.

    A small excess, as by bicubic interpolation, is accepted. Reads two numbers, which synchronises with the device.
    """
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"Images must be uint8, or floating point between 0 and 1, got {images.dtype}.")
    lowest, highest = torch.stack([images.min(), images.max()]).tolist()
    if not LOWEST <= lowest <= highest <= HIGHEST:
        raise ValueError(
            f"Floating-point images must be between 0 and 1, got values from {lowest:.3g} to {highest:.3g}: leave out "
            "the normalisation of your transform, and pass its mean and std to the module; or pass uint8 images."
        )
