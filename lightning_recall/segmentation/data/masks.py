"""Reads mask files: ids or colours in the file become classes 0 to C - 1, and 255 for ignored pixels."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_recall.data.messages import pluralize, quote, shorten

IGNORED_PIXEL = 255
"""value of the pixels that losses and scores ignore"""
MAX_CLASSES = 255
UNKNOWN = -1  # in lookup tables
MANY_VALUES = 20  # unknown values in one mask; more look like a mask that was compressed or resized smoothly
LITTLE_ENDIAN = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""how Pillow's decoder calls channels of 16 bits -> the same with swapped bytes"""
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000")
RED, GREEN = 1 << 16, 1 << 8  # a colour as one number: RED * r + GREEN * g + b


class MaskError(ValueError):
    """A mask that cannot be used; the message names the file."""


def read_ids(path: str | Path) -> NDArray[np.integer]:
    """Ids (H, W) of a mask with one channel: 8 or 16 bit grey, or the indices of a palette.

    RGB files whose three channels are equal count as grey.

    Raises:
        MaskError: for a JPEG, a file with colours or fractions, or RGB with 16 bits per channel.
    """
    with open_mask(path) as file:
        if is_deep(file):  # Pillow would keep only the high byte
            raise MaskError(f"the mask {shorten(path)} is RGB with 16 bits per channel: save the ids in one channel")
        if file.mode == "F":
            values = np.asarray(file)
            if (values % 1).any():
                raise MaskError(f"the mask {shorten(path)} has fractions, but ids are expected: save ids as PNG")
            return values.astype(np.int64)
        if file.mode in ("L", "P", "1", "I") or file.mode.startswith("I;16"):
            ids = np.asarray(file)
            return ids.astype(np.uint8) if file.mode == "1" else ids
        channels = np.asarray(file.convert("RGB"))  # (H, W, 3)
    if (channels == channels[..., :1]).all():
        return channels[..., 0]
    raise MaskError(
        f"the mask {shorten(path)} has colours ({file.mode}), but ids are expected: pass the colour of each class, for "
        "example as a file classes.csv with the columns name, r, g, b"
    )


def read_colors(path: str | Path) -> NDArray[np.integer]:
    """Colours (H, W) of a mask, each as one number: 65536 r + 256 g + b; palettes are resolved, alpha is dropped.

    Raises:
        MaskError: for a JPEG.
    """
    with open_mask(path) as file:
        channels = np.asarray(file.convert("RGB")).astype(np.int64)
    codes: NDArray[np.int64] = channels @ np.array([RED, GREEN, 1])  # (H, W)
    return codes


def read_first_channel(path: str | Path) -> NDArray[np.integer]:
    """Ids (H, W) in the first channel of a PNG with 8 or 16 bits; other channels may hold instances.

    Pillow keeps only the high byte of each number in a 16-bit RGB file, and ids are in the low byte. Read as
    little-endian, the bytes change places and Pillow keeps the low one.
    """
    with open_mask(path) as file:
        if not is_deep(file):
            return read_ids(path) if file.mode != "RGB" else np.asarray(file)[..., 0]
        high = np.asarray(file)[..., 0].astype(np.int64)
    swapped: Any = open_mask(path)
    with swapped:
        swapped.tile = [(*tile[:3], LITTLE_ENDIAN[tile[3]]) for tile in swapped.tile]
        ids: NDArray[np.int64] = 256 * high + np.asarray(swapped)[..., 0]
    return ids


def is_deep(file: Image.Image) -> bool:
    """Whether an opened file is RGB or RGBA with 16 bits per channel."""
    return any(tile[3] in LITTLE_ENDIAN for tile in getattr(file, "tile", ()))


def open_mask(path: str | Path) -> Image.Image:
    """Opens a mask.

    Raises:
        MaskError: if its format is lossy.
    """
    file = Image.open(path)
    if file.format in LOSSY_FORMATS:
        file.close()
        raise MaskError(
            f"the mask {shorten(path)} is a {file.format} file, which changes the values of pixels: save masks as PNG"
        )
    return file


def color_code(color: Iterable[int]) -> int:
    """A colour (r, g, b) as one number: 65536 r + 256 g + b."""
    red, green, blue = (int(channel) for channel in color)
    return RED * red + GREEN * green + blue


@dataclass(frozen=True)
class MaskFormat:
    """How a mask file becomes classes (H, W) uint8.

    Args:
        class_of: value in the file -> class from 0, or `IGNORED_PIXEL`. Colours are numbers, see `color_code`.
        read: reads the values (H, W) of a file.
        names: class names, for messages.

    >>> MaskFormat({0: 0, 7: 1, 255: IGNORED_PIXEL}).encode(np.array([[0, 7], [255, 0]])).tolist()
    [[0, 1], [255, 0]]
    """

    class_of: Mapping[int, int]
    read: Callable[[str | Path], NDArray[np.integer]] = read_ids
    names: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The known values in ascending order (K,), and their classes (K,)."""
        values = np.array(sorted(self.class_of), dtype=np.int64)
        return values, np.array([self.class_of[int(value)] for value in values], dtype=np.int64)

    @cached_property
    def _table(self) -> NDArray[np.int16] | None:
        """Class of each value, `UNKNOWN` where there is none; None for colours, whose table would be large."""
        values, classes = self._sorted
        if len(values) and (values[-1] >= 1 << 16 or values[0] < 0):
            return None
        table = np.full(1 << 16, UNKNOWN, dtype=np.int16)
        table[values] = classes
        return table

    def encode(self, values: NDArray[np.integer], path: str | Path = "mask") -> NDArray[np.uint8]:
        """Classes (H, W) of the values (H, W) of a mask.

        Raises:
            MaskError: for values that are not in `class_of`; the message names the file.
        """
        in_table = not values.size or (values.min() >= 0 and values.max() < 1 << 16)
        if self._table is not None and in_table:
            classes: NDArray[Any] = self._table[values]
        else:
            known, of_known = self._sorted
            position = np.searchsorted(known, values).clip(max=len(known) - 1)
            classes = np.where(known[position] == values, of_known[position], UNKNOWN)
        if (classes == UNKNOWN).any():
            unknown, counts = np.unique(values[classes == UNKNOWN], return_counts=True)
            found = dict(zip(unknown.tolist(), counts.tolist(), strict=True))
            raise MaskError(self._unknown_message(found, path))
        return classes.astype(np.uint8)

    def __call__(self, path: str | Path) -> NDArray[np.uint8]:
        """Classes (H, W) of a file.

        Raises:
            MaskError: if the file is a JPEG, or has values that are not in `class_of`.
        """
        return self.encode(self.read(path), path)

    def _unknown_message(self, counts: Mapping[int, int], path: str | Path) -> str:
        """Which unknown value is the most frequent, and what is known."""
        value = max(counts, key=lambda value: counts[value])
        kind = "colour" if self.read is read_colors else "id"
        others = f", and {pluralize(len(counts) - 1, f'other unknown {kind}')}" if len(counts) > 1 else ""
        advice = f"Add the {kind} to the classes, or to the ignored ones."
        if len(counts) > MANY_VALUES:
            advice = (
                f"So many {kind}s come from lossy compression or from resizing with interpolation: export the masks "
                "again as PNG, and resize them with nearest-neighbour interpolation."
            )
        return (
            f"the mask {shorten(path)} has the {kind} {self.show(value)} in {pluralize(counts[value], 'pixel')}"
            f"{others}. Known are {self.known_values()}. {advice}"
        )

    def show(self, value: int) -> str:
        """A value for messages: an id, or a colour (r, g, b)."""
        return str((value // RED, value // GREEN % 256, value % 256)) if self.read is read_colors else str(value)

    def known_values(self) -> str:
        """The known values with class names, for messages."""
        names = dict(enumerate(self.names)) | {IGNORED_PIXEL: "ignored"}
        shown = [f"{self.show(value)} {quote(names.get(label, str(label)))}" for value, label in self.class_of.items()]
        return ", ".join(shown[:40]) + (f" and {len(shown) - 40} more" if len(shown) > 40 else "")
