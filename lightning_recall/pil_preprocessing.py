"""Decoding with Pillow and NumPy only, and the input of an exported model: for servers that do not import torch."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels"""

SIDEWAYS = 5  # EXIF orientations from 5 to 8 exchange width and height


def preprocess(
    file: str | Path | BinaryIO, settings: Mapping[str, Any], max_pixels: int | None = None
) -> NDArray[np.uint8]:
    """The input of an exported model for one image file: (C, H, W) uint8.

    Does what `RetrievalModule.preprocess` does, step by step: EXIF orientation, 16-bit channels divided by 257,
    transparency blended with white, colour mode, antialiased bilinear resize of the shorter side, centre crop. Pillow
    and torchvision round the resize differently: by at most 2 of 255 grey levels in all images tried.

    Args:
        file: path, or open binary file such as `io.BytesIO(data)`, in any format that Pillow reads.
        settings: what exported files store under "preprocessing": size, resize, longest_side, mode and reducing_gap,
            with the meaning of `ImageTransforms`.
        max_pixels: most pixels that an image may have; larger ones are refused before they are decoded. None: no limit
            besides Pillow's.

    Raises:
        ValueError: if the file is not an image that Pillow can decode, has more pixels than allowed, or holds 32-bit
            pixels.

    >>> import io
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (60, 40), "red").save(file, "PNG")
    >>> preprocess(file, {"size": 32, "resize": 36, "mode": "RGB"}).shape
    (3, 32, 32)
    """
    try:
        with Image.open(file) as image:
            return decode(image, settings, max_pixels)
    except (FileNotFoundError, PermissionError, IsADirectoryError, ValueError):
        raise  # their messages are clear enough
    except Exception as error:  # decoders may raise any exception
        # an unknown format: Pillow's message is the representation of the file object
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
        raise ValueError(f"This is not an image file that Pillow can decode: {reason}.") from error


def decode(image: Image.Image, settings: Mapping[str, Any], max_pixels: int | None) -> NDArray[np.uint8]:
    """Same as `preprocess`, for an image that Pillow has opened and not yet decoded."""
    whole = upright_size(image)
    if max_pixels is not None and whole[0] * whole[1] > max_pixels:
        raise ValueError(f"The image has {whole[0]} x {whole[1]} pixels, more than {max_pixels}: send a smaller one.")
    width, height = resized_size(whole, settings)
    gap = settings.get("reducing_gap")
    factor = 1 if gap is None or not can_reduce(image) else reduce(image, (0, 0, *whole), (height, width), gap)
    image.load()
    box = (0, 0, whole[0] / factor, whole[1] / factor)
    image = upright(image, settings["mode"])
    if box[2:] != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
    if settings.get("longest_side") is None:
        image = centre_crop(image, settings["size"])
    pixels = np.asarray(image).reshape(image.height, image.width, -1)  # (H, W, C)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resized_size(whole: tuple[int, int], settings: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height after the resize, of an image of this width and height."""
    width, height = whole
    if (limit := settings.get("longest_side")) is not None:
        scale = min(1.0, limit / max(whole))
        return max(1, round(width * scale)), max(1, round(height * scale))
    shorter = settings["resize"]
    return (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of an image whose sides have at least `size` pixels; rounds as torchvision does."""
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) if there is none or it cannot be read."""
    found = None
    with suppress(Exception):  # broken EXIF tags may raise
        found = image.getexif().get(ExifTags.Base.Orientation)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height once the EXIF orientation is applied."""
    width, height = image.size
    return (height, width) if orientation(image) >= SIDEWAYS else (width, height)


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


def can_reduce(image: Image.Image) -> TypeGuard[JpegImageFile]:
    """Whether the decoder of an image can reduce it: an RGB JPEG file."""
    return isinstance(image, JpegImageFile) and image.mode == "RGB"


def upright(image: Image.Image, mode: str) -> Image.Image:
    """The image in its EXIF orientation and the colour mode, with 8 bits per channel; may change the image in place.

    Raises:
        ValueError: for 32-bit integers and floating-point numbers, whose white level is not defined.
    """
    file_format = image.format
    with suppress(Exception):  # broken EXIF tags may raise, after the image has been rotated
        ImageOps.exif_transpose(image, in_place=True)  # copies only if it rotates
    check_depth(image.mode, file_format)
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))  # Pillow would clip 16 bits to 8
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)  # convert would copy


def check_depth(mode: str, file_format: str | None) -> None:
    """Checks that the mode of an image has a defined white level; Pillow opens some 16-bit formats in mode "I".

    Raises:
        ValueError: for 32-bit integers or floating-point numbers.
    """
    if mode == "F" or (mode == "I" and file_format not in ("PNG", "PPM")):
        raise ValueError("32-bit images have no defined white level: save the image with 8 or 16 bits per channel")
