"""Image files as a data set: decoded, cropped and augmented in the workers, as uint8."""

import copy
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from lightning_recall.checks import checked_labels
from lightning_recall.data.columns import select_rows
from lightning_recall.data.messages import short

UNREADABLE = -100  # label of an image that could not be read, and that no score counts: torch's ignore_index


@dataclass(frozen=True)
class ImageTransforms:
    """How an image file becomes a tensor (C, size, size) uint8.

    The defaults are those of the paper: a random crop, resized, and a random flip for training; for evaluation the
    middle of the image, its shorter side scaled to `resize`.

    Args:
        size: height and width that the network sees, in pixels.
        resize: length of the shorter side before the middle is cut out for evaluation, in pixels, from `size`.
        longest_side: for evaluation of whole images in their own shape: they are scaled down to be so long at most, in
            pixels, instead of the cut-out middle; their batches can hold one image only. None: not.
        min_scale: smallest share of the image's area in a random crop, above 0 and up to 1.
        flip: whether training images are mirrored at random, left to right.
        mode: "RGB", or "L" for one grey channel.
        train_transform: a transform of (C, H, W) uint8 tensors, of torchvision's v2 for example, instead of the random
            crop and flip.
        eval_transform: one instead of the cut-out middle.
        on_error: what becomes of a file that cannot be read. "skip": training takes another image of the class,
            evaluation leaves it out, and both say so; "raise" ends the run.

    Raises:
        ValueError: for numbers out of range.
    """

    size: int = 224
    resize: int = 256
    longest_side: int | None = None
    min_scale: float = 0.08
    flip: bool = True
    mode: Literal["RGB", "L"] = "RGB"
    train_transform: nn.Module | None = None
    eval_transform: nn.Module | None = None
    on_error: Literal["skip", "raise"] = "skip"

    def __post_init__(self) -> None:
        if not (1 <= self.size <= self.resize and 0 < self.min_scale <= 1):
            raise ValueError(
                f"An image needs 1 <= size <= resize and 0 < min_scale <= 1, got size={self.size}, "
                f"resize={self.resize}, min_scale={self.min_scale}."
            )

        if self.mode not in ("RGB", "L") or self.on_error not in ("skip", "raise"):
            raise ValueError(
                f'mode must be "RGB" or "L", on_error "skip" or "raise", got {self.mode!r} and {self.on_error!r}.'
            )

    def transform(self, training: bool) -> nn.Module:
        """The transform of training images, or of those of evaluation."""
        if training:
            crop = v2.RandomResizedCrop(self.size, scale=(self.min_scale, 1.0), antialias=True)
            return self.train_transform or (v2.Compose([crop, v2.RandomHorizontalFlip()]) if self.flip else crop)
        if self.longest_side is not None:
            return self.eval_transform or nn.Identity()
        return self.eval_transform or v2.Compose([v2.Resize(self.resize, antialias=True), v2.CenterCrop(self.size)])


def read_image(
    path: str | Path,
    mode: Literal["RGB", "L"] = "RGB",
    box: Sequence[float] | None = None,
    longest_side: int | None = None,
) -> Tensor:
    """Decodes an image file to (C, H, W) uint8, upright, whatever its colour mode.

    Grey, palette and CMYK images are converted, an EXIF orientation is applied, and transparent parts become white. 16
    bits a channel are scaled to 8, so that 65,535 is white, whatever values the image has.

    Args:
        path: of any format that Pillow reads.
        mode: "RGB" or "L".
        box: part of the upright image to cut out: left, top, right, bottom, in pixels; None or NaN: all of it.
        longest_side: pixels to which the whole image, and the part with it, is scaled down if it is longer.

    Raises:
        ValueError: for integers or floating-point numbers of 32 bits: programs differ in which of them is white.
    """
    with Image.open(path) as file:
        file.load()
    image: Image.Image = file
    with suppress(Exception):  # of broken tags; it turns the image, if it can, before it writes them anew
        ImageOps.exif_transpose(image, in_place=True)  # copies only what it turns
    if image.mode.startswith("I;16") or (image.mode == "I" and file.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))  # Pillow would clip 16 bits to 8
    elif image.mode in ("I", "F"):
        raise ValueError("32 bits a channel do not tell which value is white: save it with 8 or 16")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image if image.mode == mode else image.convert(mode)  # else a copy
    scale = min(1.0, (longest_side or max(image.size)) / max(image.size))
    if box is not None and not np.isnan(box[0]):
        left, top, right, bottom = (round(side) for side in box)
        image = image.crop((left, top, right, bottom))
    tensor: Tensor = tv.pil_to_tensor(image)
    if scale < 1:
        tensor = tv.resize(tensor, [max(1, round(side * scale)) for side in tensor.shape[1:]], antialias=True)
    return tensor


def integer_labels(labels: Any, count: int) -> NDArray[np.int64]:
    """Labels (N,) as int64, given as an array, a list or a tensor of integers.

    Raises:
        ValueError: if they are no `count` integers of 64 bits.
    """
    array = checked_labels(labels) if len(labels) else np.zeros(0, dtype=np.int64)
    if array.shape != (count,):
        raise ValueError(f"labels must be of shape ({count},), one for each image, got {array.shape}.")
    return array.astype(np.int64, copy=False)


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """Image files and their labels; an item is (image (C, H, W) uint8, label).

    Paths and labels are arrays, so that worker processes share the memory of millions of them.

    Args:
        root: folder that the paths start from.
        paths: (N,) of files.
        labels: (N,) integers from 0.
        super_labels: (N,) integers: a wider class of each image, such as "bicycle"; None: not known.
        boxes: (N, 4) parts of the images to cut out first: left, top, right, bottom, in pixels; None: whole images.
        is_query: (N,) whether an image is a query in evaluation; None: all are.
        is_gallery: (N,) whether an image can be retrieved; None: all can.
        transforms: how a file becomes a tensor.
        training: whether images are transformed for training.
        groups: (N,) integers: in evaluation a query passes over images of its own label and group, such as its own
            camera's; None: over none.

    Attributes:
        columns: names of the attributes that have an entry for each image: `select` takes the entries of its rows. A
            subclass adds those of its own.
        class_names: name of each label, for messages; None: not known.

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
        if groups is not None:  # else a subclass's own stay
            self.groups = np.asarray(groups)
        self.transforms = transforms or ImageTransforms()
        self.training = training
        self.transform = self.transforms.transform(training)
        self.unreadable = self._none_unreadable()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and label; for a file that cannot be read see `ImageTransforms.on_error`."""
        image = self.read(index)
        if image is None and self.training:
            index, image = self.another_of_class(index)
        elif image is None:
            return self.blank, torch.tensor(UNREADABLE)
        return self.transform(image), torch.tensor(self.labels[index])

    @cached_property
    def blank(self) -> Tensor:
        """What evaluation takes for an image that cannot be read: a black one as large as the first that can."""
        images = (image for image in map(self.read, range(len(self))) if image is not None)
        image = next(images, torch.zeros(len(self.transforms.mode), 32, 32, dtype=torch.uint8))
        black: Tensor = self.transform(torch.zeros_like(image))
        return black

    def path(self, index: int) -> str:
        """Path of a file."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))

    def read(self, index: int) -> Tensor | None:
        """An image (C, H, W) uint8 before its transform, None where it cannot be read and need not be."""
        try:
            box = None if self.boxes is None else self.boxes[index]
            longest_side = None if self.training else self.transforms.longest_side
            return read_image(self.path(index), self.transforms.mode, box, longest_side)
        except Exception as error:  # decoders of broken files raise anything
            if self.transforms.on_error == "raise":
                raise ValueError(f"Cannot read the image {short(self.path(index))}: {short(error)}") from error
            known, self.unreadable[index] = bool(self.unreadable[index]), True
            if not known:
                instead = "another image of its class is taken" if self.training else "it is left out"
                warnings.warn(
                    f"Cannot read the image {short(self.path(index))}: {short(error)}; {instead}.", stacklevel=2
                )
            return None

    def another_of_class(self, index: int) -> tuple[int, Tensor]:
        """The next image of the same class that can be read.

        Raises:
            ValueError: if there is none.
        """
        same = np.flatnonzero(self.labels == self.labels[index])
        for other in np.roll(same, -np.searchsorted(same, index) - 1)[:-1]:
            image = self.read(int(other))
            if image is not None:
                return int(other), image
        raise ValueError(f"No image of the class of {short(self.path(index))} can be read: is the folder still there?")

    def select(self, rows: Any, training: bool = False) -> "ImageFiles":
        """Some rows, by a mask (N,) or by their numbers, with their entries in all columns.

        Raises:
            ValueError: for an attribute that has as many entries as there are images, but is not in `columns`.
        """
        whole = copy.copy(self)
        vars(whole).pop("blank", None)  # it is made by the old transform
        chosen = select_rows(whole, rows)
        chosen.training, chosen.transform = training, self.transforms.transform(training)
        chosen.unreadable = chosen._none_unreadable()
        return chosen

    def _none_unreadable(self) -> Tensor:
        """Marks of the rows (N,) that could not be read, in memory that the workers share."""
        marks = torch.zeros(len(self.labels), dtype=torch.bool)
        marks.share_memory_()  # type: ignore[no-untyped-call]  # torch has no types here
        return marks
