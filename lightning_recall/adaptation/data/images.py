"""Images of one domain as a data set, in memory or in files, with labels or without."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_recall.adaptation.batches import NO_LABEL
from lightning_recall.batch import IGNORED_LABEL
from lightning_recall.data import ImageFiles, ImagesInMemory, ImageTransforms


class DomainArrays(ImagesInMemory):
    """Images of a domain in memory; an item is (image (3, H, W) uint8, label), and the label -1 means unknown.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) integers from 0, or -1; None: no image has a label.
        class_names: K names.

    Raises:
        ValueError: for images of another shape or type, or labels that are not N integers.

    >>> data = DomainArrays(np.zeros((5, 3, 32, 32), np.uint8), class_names=["cup", "pen"])
    >>> len(data), int(data[0][1])
    (5, -1)
    """

    def __init__(self, images: NDArray[np.uint8], labels: Any = None, class_names: Sequence[str] = ()) -> None:
        super().__init__(images, np.full(len(images), NO_LABEL) if labels is None else labels)
        self.class_names = tuple(class_names)


class DomainFiles(ImageFiles):
    """Image files of a domain; an item is (image (3, H, W) uint8, label), and the label -1 means unknown.

    Args:
        root: folder that paths are relative to.
        paths: (N,) file paths.
        labels: (N,) integers from 0, or -1; None: no image has a label.
        class_names: K names.
        transforms: image loading and transforms.

    Raises:
        ValueError: if the labels are not N integers.
    """

    def __init__(
        self,
        root: Any,
        paths: Sequence[str],
        labels: Any = None,
        class_names: Sequence[str] = (),
        transforms: ImageTransforms | None = None,
    ) -> None:
        labels = np.full(len(paths), NO_LABEL) if labels is None else labels
        super().__init__(root, paths, labels, transforms=transforms)
        self.class_names = tuple(class_names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and label; an unreadable image of the evaluation has no label."""
        image, label = super().__getitem__(index)
        return image, torch.tensor(NO_LABEL) if label == IGNORED_LABEL else label

    def image_path(self, index: int) -> str:
        """Path of a file."""
        return self.path(index)


def without_labels(data: Any) -> Any:
    """A copy of a data set whose labels are all -1; the images are shared.

    Args:
        data: a data set with an attribute `labels` (N,).
    """
    chosen = copy.copy(data)
    chosen.labels = np.full(len(data), NO_LABEL)
    return chosen
