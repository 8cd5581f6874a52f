"""Image files with mask files as a data set."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from lightning_recall.checks import first_line
from lightning_recall.data import read_image
from lightning_recall.data.messages import shorten
from lightning_recall.segmentation.data.masks import IGNORED_PIXEL, MaskError, MaskFormat
from lightning_recall.segmentation.data.transforms import SegmentationTransforms


class SegmentationFiles(Dataset[tuple[Tensor, Tensor]]):
    """Images with masks; an item is (image (3, H, W) uint8, mask (H, W) int64), as `tv_tensors`.

    Mask values are classes from 0 and 255 for ignored pixels. Images are upright: their EXIF orientation is applied.

    Args:
        images: N image files.
        masks: N mask files; None for images that are only predicted: every pixel is ignored.
        mask_format: how a mask file becomes classes.
        class_names: C names.
        transforms: settings of the joint transforms.
        training: whether to use the training transform.

    Raises:
        ValueError: if there are not as many masks as images; for an item that cannot be read or whose mask has another
            size than its image.
    """

    def __init__(
        self,
        images: Sequence[str | Path],
        masks: Sequence[str | Path] | None,
        mask_format: MaskFormat,
        class_names: Sequence[str],
        transforms: SegmentationTransforms | None = None,
        training: bool = False,
    ) -> None:
        if masks is not None and len(images) != len(masks):
            raise ValueError(f"There must be one mask for each image, got {len(images)} images and {len(masks)} masks.")
        # Arrays, so that workers share their memory.
        self.images = np.array([os.fsencode(path) for path in images])
        self.masks = None if masks is None else np.array([os.fsencode(path) for path in masks])
        self.mask_format = mask_format
        self.class_names = tuple(class_names)
        self.transforms = transforms or SegmentationTransforms()
        self.training = training
        self.transform = self.transforms.transform(training)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and mask after the transform."""
        image, mask = self.transform(*self.read(index))
        return image, tv_tensors.Mask(mask.as_subclass(Tensor).long())

    def image_path(self, index: int) -> str:
        """Path of an image."""
        return os.fsdecode(self.images[index])

    def mask_path(self, index: int) -> str:
        """Path of a mask."""
        assert self.masks is not None
        return os.fsdecode(self.masks[index])

    def read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Image (3, H, W) uint8 and mask (H, W) uint8 before the transform."""
        path = self.image_path(index)
        try:
            image = read_image(path)
        except Exception as error:  # decoders may raise any exception
            raise ValueError(f"Cannot read the image {shorten(path)}: {first_line(error)}.") from error
        if self.masks is None:
            return tv_tensors.Image(image), tv_tensors.Mask(torch.full_like(image[0], IGNORED_PIXEL))
        mask = self.read_mask(index)
        if image.shape[-2:] != mask.shape:
            raise ValueError(size_message(path, tuple(image.shape[-2:]), self.mask_path(index), mask.shape))
        return tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(mask))

    def read_mask(self, index: int) -> NDArray[np.uint8]:
        """Classes (H, W) of a mask.

        Raises:
            MaskError: if it cannot be read or has unknown values; the message names the file.
        """
        path = self.mask_path(index)
        try:
            return self.mask_format(path)
        except MaskError:
            raise
        except Exception as error:  # decoders may raise any exception
            raise MaskError(f"cannot read the mask {shorten(path)}: {first_line(error)}") from error

    def select(self, indices: NDArray[np.int64] | NDArray[np.bool_] | slice) -> "SegmentationFiles":
        """A subset, by mask (N,) or indices (M,)."""
        chosen = copy.copy(self)
        chosen.images = self.images[indices]
        chosen.masks = None if self.masks is None else self.masks[indices]
        return chosen

    def for_training(self) -> "SegmentationFiles":
        """The same images with the training transform."""
        chosen = copy.copy(self)
        chosen.training, chosen.transform = True, self.transforms.transform(training=True)
        return chosen


def size_message(image: str, image_size: Sequence[int], mask: str, mask_size: Sequence[int]) -> str:
    """Says that a mask has another size than its image; sizes are (height, width)."""
    rotated = (
        " The image was probably turned after the mask was drawn." if list(image_size) == list(mask_size)[::-1] else ""
    )
    return (
        f"the mask {shorten(mask)} has {mask_size[1]} x {mask_size[0]} pixels (width x height), but its image "
        f"{shorten(image)} has {image_size[1]} x {image_size[0]}: both must have the same size.{rotated}"
    )
