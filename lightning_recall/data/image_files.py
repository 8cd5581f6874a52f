"""Image files as a data set: the workers decode, crop and augment them, as uint8."""

import copy
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tv

from lightning_recall.batch import IGNORED_LABEL
from lightning_recall.checks import labels_to_numpy
from lightning_recall.data.columns import select_items
from lightning_recall.data.messages import shorten
from lightning_recall.data.transforms import ImageTransforms


def read_image(
    path: str | Path,
    mode: Literal["RGB", "L"] = "RGB",
    box: Sequence[float] | None = None,
    longest_side: int | None = None,
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
    with Image.open(path) as file:
        file.load()
    return decode(file, mode, box, longest_side)


def decode(
    image: Image.Image,
    mode: Literal["RGB", "L"] = "RGB",
    box: Sequence[float] | None = None,
    longest_side: int | None = None,
) -> Tensor:
    """Same as `read_image`, for an image that Pillow has opened; rotates it in place if its EXIF data say so."""
    file_format = image.format
    with suppress(Exception):  # broken EXIF tags may raise, after the image has been rotated
        ImageOps.exif_transpose(image, in_place=True)  # copies only if it rotates
    check_depth(image.mode, file_format)
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))  # Pillow would clip 16 bits to 8
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image if image.mode == mode else image.convert(mode)  # convert would copy
    scale = min(1.0, (longest_side or max(image.size)) / max(image.size))
    if box is not None and not np.isnan(box[0]):
        left, top, right, bottom = (round(side) for side in box)
        image = image.crop((left, top, right, bottom))
    tensor: Tensor = tv.pil_to_tensor(image)
    if scale < 1:
        tensor = tv.resize(tensor, [max(1, round(side * scale)) for side in tensor.shape[1:]], antialias=True)
    return tensor


def check_depth(mode: str, file_format: str | None) -> None:
    """Checks that the mode of an image has a defined white level; Pillow opens some 16-bit formats in mode "I".

    Raises:
        ValueError: for 32-bit integers or floating-point numbers.
    """
    if mode == "F" or (mode == "I" and file_format not in ("PNG", "PPM")):
        raise ValueError("32-bit images have no defined white level: save the image with 8 or 16 bits per channel")


def integer_labels(labels: Any, count: int) -> NDArray[np.int64]:
    """Converts labels, an array, a list or a tensor of integers, to an int64 array (N,).

    Raises:
        ValueError: if they are not `count` integers that fit in int64.
    """
    array = labels_to_numpy(labels) if len(labels) else np.zeros(0, dtype=np.int64)
    if array.shape != (count,):
        raise ValueError(f"labels must be of shape ({count},), one for each image, got {array.shape}.")
    return array.astype(np.int64, copy=False)


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """Image files and their labels; an item is (image (C, H, W) uint8, label).

    Paths and labels are arrays, so that workers share their memory (no copy-on-write of Python objects).

    Args:
        root: folder that paths are relative to.
        paths: (N,) file paths.
        labels: (N,) integers from 0.
        super_labels: (N,) integers: super-class of each image, such as "bicycle"; None: not known.
        boxes: (N, 4) crops of the images, applied first: left, top, right, bottom, in pixels; None: whole images.
        is_query: (N,) whether an image is a query in evaluation; None: all are.
        is_gallery: (N,) whether an image can be retrieved; None: all can.
        transforms: image loading and transforms.
        training: whether to use the training transform.
        groups: (N,) integers: in evaluation, gallery images with the same label and group (such as camera) as the query
            are ignored; None: no image is ignored.

    Attributes:
        columns: names of the per-image attributes, which `select` indexes; subclasses extend it.
        class_names: name of each label, for messages; None: not known.
        unreadable: (N,) bool: True for files that could not be read, in memory that the workers share.

    Raises:
        ValueError: if the labels are not N integers.
    """

    columns: ClassVar[tuple[str, ...]] = (
        *("paths", "labels", "super_labels", "boxes"),
        *("is_query", "is_gallery", "groups", "unreadable"),
    )
    class_names: tuple[str, ...] | None = None
    groups: Any = None

    def __init__(
        self,
        root: str | Path,
        paths: Sequence[str] | NDArray[np.bytes_],
        labels: Any,
        super_labels: Any = None,
        boxes: Any = None,
        is_query: Any = None,
        is_gallery: Any = None,
        transforms: ImageTransforms | None = None,
        training: bool = False,
        groups: Any = None,
    ) -> None:
        self.root = str(root)
        self.paths = paths if isinstance(paths, np.ndarray) else np.array([os.fsencode(path) for path in paths])
        self.labels = integer_labels(labels, len(self.paths))
        self.super_labels, self.boxes, self.is_query, self.is_gallery = (
            None if values is None else np.asarray(values) for values in (super_labels, boxes, is_query, is_gallery)
        )
        if groups is not None:  # otherwise keep the class attribute
            self.groups = np.asarray(groups)
        self.transforms = transforms or ImageTransforms()
        self.training = training
        self.transform = self.transforms.transform(training)
        self.unreadable = self._new_unreadable_mask()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and label; for unreadable files see `ImageTransforms.on_error`."""
        image = self.read(index)
        if image is None and self.training:
            index, image = self.another_of_class(index)
        elif image is None:
            return self.blank, torch.tensor(IGNORED_LABEL)
        return self.transform(image), torch.tensor(self.labels[index])

    @cached_property
    def blank(self) -> Tensor:
        """Placeholder for unreadable images in evaluation: black, with the size of the first readable image."""
        images = (image for image in map(self.read, range(len(self))) if image is not None)
        image = next(images, torch.zeros(len(self.transforms.mode), 32, 32, dtype=torch.uint8))
        black: Tensor = self.transform(torch.zeros_like(image))
        return black

    def path(self, index: int) -> str:
        """Path of a file."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))

    def read(self, index: int) -> Tensor | None:
        """An image (C, H, W) uint8 before its transform; None if it is unreadable and `on_error` is "skip"."""
        try:
            box = None if self.boxes is None else self.boxes[index]
            longest_side = None if self.training else self.transforms.longest_side
            return read_image(self.path(index), self.transforms.mode, box, longest_side)
        except Exception as error:  # decoders may raise any exception
            if self.transforms.on_error == "raise":
                raise ValueError(f"Cannot read the image {shorten(self.path(index))}: {shorten(error)}") from error
            already_warned = bool(self.unreadable[index])
            self.unreadable[index] = True
            if not already_warned:
                instead = "using another image of its class" if self.training else "ignoring it"
                warnings.warn(
                    f"Cannot read the image {shorten(self.path(index))}: {shorten(error)}; {instead}.", stacklevel=2
                )
            return None

    def another_of_class(self, index: int) -> tuple[int, Tensor]:
        """The index and the pixels of the next readable image of the same class.

        Raises:
            ValueError: if there is none.
        """
        same = np.flatnonzero(self.labels == self.labels[index])
        for other in np.roll(same, -np.searchsorted(same, index) - 1)[:-1]:
            image = self.read(int(other))
            if image is not None:
                return int(other), image
        raise ValueError(
            f"Cannot read any image of the class of {shorten(self.path(index))}: check that the folder exists."
        )

    def select(self, indices: Any, training: bool = False) -> "ImageFiles":
        """Selects a subset, by mask (N,) or indices (M,), including its entries in all columns.

        Raises:
            ValueError: for an attribute that has as many entries as there are images, but is not in `columns`.
        """
        whole = copy.copy(self)
        vars(whole).pop("blank", None)  # the cached image depends on the transform
        chosen = select_items(whole, indices)
        chosen.training, chosen.transform = training, self.transforms.transform(training)
        chosen.unreadable = chosen._new_unreadable_mask()
        return chosen

    def _new_unreadable_mask(self) -> Tensor:
        """Mask (N,) of the unreadable images, all False, in memory that the workers share."""
        mask = torch.zeros(len(self.labels), dtype=torch.bool)
        mask.share_memory_()  # type: ignore[no-untyped-call]  # torch has no types here
        return mask
