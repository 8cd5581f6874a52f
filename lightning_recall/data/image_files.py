"""Image files as a data set: the workers decode, crop and augment them, as uint8."""

import copy
import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_recall.batch import IGNORED_LABEL
from lightning_recall.checks import labels_to_numpy
from lightning_recall.data.columns import select_items
from lightning_recall.data.decoding import read_resampled
from lightning_recall.data.messages import shorten
from lightning_recall.data.transforms import ImageTransforms


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
        self.resampling, self.transform = self.transforms.steps(training)
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
        """An image (C, H, W) uint8, resized, before the rest of its transform; None if it is unreadable and skipped."""
        try:
            box = None if self.boxes is None else self.boxes[index]
            settings = self.transforms.mode, box, self.transforms.reducing_gap
            return read_resampled(self.path(index), self.resampling, *settings)
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
        chosen.training = training
        chosen.resampling, chosen.transform = self.transforms.steps(training)
        chosen.unreadable = chosen._new_unreadable_mask()
        return chosen

    def _new_unreadable_mask(self) -> Tensor:
        """Mask (N,) of the unreadable images, all False, in memory that the workers share."""
        mask = torch.zeros(len(self.labels), dtype=torch.bool)
        mask.share_memory_()  # type: ignore[no-untyped-call]  # torch has no types here
        return mask
