"""Images held in memory as a data set."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_recall.data.columns import select_items
from lightning_recall.data.image_files import integer_labels


class ImagesInMemory(Dataset[tuple[Tensor, Tensor]]):
    """Images (N, C, H, W) uint8 and labels (N,) int64, held in memory.

    `is_query`, `is_gallery`, `groups` and `super_labels`, each (N,), may be set as attributes; see `RetrievalDataset`
    for their meaning.

    Attributes:
        columns: names of the per-image attributes, which `select` indexes; subclasses extend it.

    Raises:
        ValueError: for images of another shape or type, or labels that are not N integers.
    """

    columns: ClassVar[tuple[str, ...]] = ("images", "labels", "super_labels", "is_query", "is_gallery", "groups")

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        images = np.asarray(images)  # also accepts a tensor
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 of shape (N, C, H, W), got {images.dtype} {images.shape}.")
        self.images = torch.from_numpy(images)
        self.labels = integer_labels(labels, len(images))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image (C, H, W) uint8 and label, a scalar."""
        return self.images[index], torch.tensor(self.labels[index])

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Returns a batch of items at once."""
        return list(zip(self.images[indices], torch.from_numpy(self.labels[indices]), strict=True))

    def select(self, indices: Any, training: bool = False) -> "ImagesInMemory":
        """Selects a subset, by mask (N,) or indices (M,), including its entries in all columns.

        Raises:
            ValueError: for an attribute that has as many entries as there are images, but is not in `columns`.
        """
        return select_items(self, indices)
