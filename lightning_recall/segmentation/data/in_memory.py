"""Images with masks in memory as a data set."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from lightning_recall.segmentation.data.transforms import SegmentationTransforms


class SegmentationArrays(Dataset[tuple[Tensor, Tensor]]):
    """Images with masks in memory; an item is (image (3, H, W) uint8, mask (H, W) int64), as `tv_tensors`.

    Args:
        images: (N, 3, H, W) uint8.
        masks: (N, H, W) uint8, classes from 0 and 255 for ignored pixels.
        class_names: C names.
        transforms: settings of the joint transforms.
        training: whether to use the training transform.

    Raises:
        ValueError: if the shapes do not agree.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        masks: NDArray[np.uint8],
        class_names: Sequence[str],
        transforms: SegmentationTransforms | None = None,
        training: bool = False,
    ) -> None:
        if images.shape != (len(masks), 3, *masks.shape[1:]):
            raise ValueError(
                f"Images must have the shape (N, 3, H, W) and masks (N, H, W), got {images.shape} and {masks.shape}."
            )
        self.images, self.masks = torch.from_numpy(images), torch.from_numpy(masks)
        self.class_names = tuple(class_names)
        self.transforms = transforms or SegmentationTransforms()
        self.training = training
        self.transform = self.transforms.transform(training)

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and mask after the transform."""
        image, mask = self.transform(tv_tensors.Image(self.images[index]), tv_tensors.Mask(self.masks[index]))
        return image, tv_tensors.Mask(mask.as_subclass(Tensor).long())

    def read_mask(self, index: int) -> NDArray[np.uint8]:
        """Classes (H, W) of a mask."""
        return np.asarray(self.masks[index])

    def for_training(self) -> "SegmentationArrays":
        """The same images with the training transform."""
        chosen = copy.copy(self)
        chosen.training, chosen.transform = True, self.transforms.transform(training=True)
        return chosen
