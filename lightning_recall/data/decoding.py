"""Decodes image files to tensors, and crops and resizes them; large JPEG files are decoded at reduced size."""

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from lightning_recall.data import resampling
from lightning_recall.data.resampling import Box, ChooseResampling

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
        if reducing_gap is None or not isinstance(file, JpegImageFile) or file.mode != "RGB":
            file.load()
            return decode(file, choose, mode, box)
        whole = upright_size(file)
        crop, size = choose(whole, whole_pixels(box, whole))
        factor = reduce(file, crop, size, reducing_gap)
        file.load()
    image = upright(file, mode)
    return resample(image, crop, size) if factor == 1 else resample_reduced(image, crop, size, factor)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) if there is none or it cannot be read."""
    found = None
    with suppress(Exception):  # broken EXIF tags may raise
        found = image.getexif().get(ExifTags.Base.Orientation)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height once the EXIF orientation is applied."""
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


def reduce(image: JpegImageFile, crop: Box, size: tuple[int, int], gap: float) -> int:
    """Makes the decoder reduce an image that is not decoded yet; returns the factor, 1, 2, 4 or 8.

    The crop keeps at least `gap` times the height and width that it is resized to.
    """
    left, top, right, bottom = crop
    largest = min((bottom - top) / size[0], (right - left) / size[1]) / gap
    width, height = upright_size(image)
    inside = 0 <= left <= right <= width and 0 <= top <= bottom <= height
    is_turned = orientation(image) > 1  # a last, incomplete column would become the first
    for factor in (8, 4, 2):
        divides = width % factor == 0 == height % factor
        if factor <= largest and inside and (divides or not is_turned):
            drafted = image.draft(None, (image.width // factor, image.height // factor))
            return 1 if drafted is None else factor
    return 1


def upright(image: Image.Image, mode: Mode) -> Image.Image:
    """The image in its EXIF orientation and the colour mode, with 8 bits per channel; may change the image in place."""
    file_format = image.format
    with suppress(Exception):  # broken EXIF tags may raise, after the image has been rotated
        ImageOps.exif_transpose(image, in_place=True)  # copies only if it rotates
    check_depth(image.mode, file_format)
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))  # Pillow would clip 16 bits to 8
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)  # convert would copy


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


def check_depth(mode: str, file_format: str | None) -> None:
    """Checks that the mode of an image has a defined white level; Pillow opens some 16-bit formats in mode "I".

    Raises:
        ValueError: for 32-bit integers or floating-point numbers.
    """
    if mode == "F" or (mode == "I" and file_format not in ("PNG", "PPM")):
        raise ValueError("32-bit images have no defined white level: save the image with 8 or 16 bits per channel")
