"""Decodes image files to tensors, and crops and resizes them; large JPEG files are decoded at reduced size."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from lightning_recall.data import resampling
from lightning_recall.data.resampling import Box, ChooseResampling
from lightning_recall.pil_preprocessing import can_reduce, reduce, upright, upright_size

Mode = Literal["RGB", "L"]


def read_image(
    path: str | Path, mode: Mode = "RGB", box: Sequence[float] | None = None, longest_side: int | None = None
) -> Tensor:
    """Decodes an image to (C, H, W) uint8, applies its EXIF orientation and converts its colour mode.

    Grey, palette and CMYK images are converted, and transparent pixels are blended with white. 16-bit channels are
    divided by 257, so that 65,535 maps to 255, without rescaling to the image's range.

    Args:
        path: file in any format that Pillow reads.
        mode: "RGB" or "L".
        box: crop of the upright image: left, top, right, bottom, in pixels; None or NaN: the whole image.
        longest_side: downscales so that the longer side of the whole image (before the crop) has at most this many
            pixels; smaller images keep their size.

    Raises:
        ValueError: for 32-bit integers or floating-point numbers: their white level is not standardized.
    """
    return read_resampled(path, partial(resampling.longest_side, longest_side), mode, box)


def decode(
    image: Image.Image, choose: ChooseResampling, mode: Mode = "RGB", box: Sequence[float] | None = None
) -> Tensor:
    """Same as `read_resampled`, for an image that Pillow has opened; rotates it in place if its EXIF data say so."""
    image = upright(image, mode)
    return resample(image, *choose(image.size, whole_pixels(box, image.size)))


def read_resampled(
    path: str | Path,
    choose: ChooseResampling,
    mode: Mode = "RGB",
    box: Sequence[float] | None = None,
    reducing_gap: float | None = None,
) -> Tensor:
    """Same as `read_image`, but crops and resizes as `choose` says.

    With a `reducing_gap`, RGB JPEG files that are far larger than the result are decoded at a half, a quarter or an
    eighth of their size, which the decoder can do without computing all pixels.

    Args:
        path: file in any format that Pillow reads.
        choose: chooses the crop and its size.
        mode: "RGB" or "L".
        box: crop of the upright image that comes first; None or NaN: the whole image.
        reducing_gap: see `ImageTransforms`.
    """
    with Image.open(path) as file:
        if reducing_gap is None or not can_reduce(file):
            file.load()
            return decode(file, choose, mode, box)
        whole = upright_size(file)
        crop, size = choose(whole, whole_pixels(box, whole))
        factor = reduce(file, crop, size, reducing_gap)
        file.load()
    image = upright(file, mode)
    return resample(image, crop, size) if factor == 1 else resample_reduced(image, crop, size, factor)


def whole_pixels(box: Sequence[float] | None, size: tuple[int, int]) -> Box:
    """A box rounded to whole pixels; None or NaN: the whole image of (width, height)."""
    if box is None or np.isnan(box[0]):
        return (0, 0, *size)
    left, top, right, bottom = (round(side) for side in box)
    return left, top, right, bottom


def resample(image: Image.Image, crop: Box, size: tuple[int, int]) -> Tensor:
    """Crops and resizes an upright image, with antialias; outside of the image, the crop is black."""
    image = image if crop == (0, 0, *image.size) else image.crop(crop)  # crop would copy
    tensor: Tensor = tv.resize(tv.pil_to_tensor(image), list(size), antialias=True)
    return tensor


def resample_reduced(image: Image.Image, crop: Box, size: tuple[int, int], factor: int) -> Tensor:
    """Same as `resample`, for an image decoded at 1 / factor of its size; the crop is in pixels of the full size."""
    left, top, right, bottom = (side / factor for side in crop)
    outer = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
    inner = left - outer[0], top - outer[1], right - outer[0], bottom - outer[1]
    height, width = size
    # without the crop, Pillow would blend the pixels around the box into its margin
    resized = image.crop(outer).resize((width, height), Image.Resampling.BILINEAR, inner)
    tensor: Tensor = tv.pil_to_tensor(resized)
    return tensor
