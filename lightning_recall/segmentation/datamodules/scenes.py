"""Scenes: street-like images that are drawn, without download."""

from typing import Any

import numpy as np

from lightning_recall.checks import check_integer
from lightning_recall.segmentation.data import SegmentationTransforms
from lightning_recall.segmentation.data.in_memory import SegmentationArrays
from lightning_recall.segmentation.data.scenes import CLASSES, draw_scenes
from lightning_recall.segmentation.datamodules.base import SegmentationDataModule

TRANSFORMS = SegmentationTransforms(scale=(0.8, 1.25))
EVAL_PARTS = {"val": (1, 5), "test": (2, 3)}
"""split -> number of the split, and by which fraction of `num_images` (one in so many) it is large"""


class ScenesDataModule(SegmentationDataModule):
    """Scenes: drawn streets of 96 x 64 pixels with 9 classes; nothing to download.

    Houses, trees, cars, persons, poles and signs stand along a road; colours, light, textures and noise vary, so that
    no class can be recognised by its colour alone. The classes are long-tailed: about 25 % of the pixels are road,
    0.6 % pole, 0.5 % person and 0.4 % sign. Scenes are the same on each machine and depend only on `seed`.

    `num_images` scenes are for training, a fifth as many for validation and a third as many for the test.

    Args:
        num_images: training images.
        transforms: settings of the joint transforms.
        kwargs: passed to `SegmentationDataModule`.

    Raises:
        ValueError: if there are fewer than 5 images.
    """

    class_names = tuple(CLASSES)
    colors = np.array(list(CLASSES.values()), dtype=np.uint8)

    def __init__(
        self, num_images: int = 300, transforms: SegmentationTransforms | None = TRANSFORMS, **kwargs: Any
    ) -> None:
        super().__init__(transforms=transforms or TRANSFORMS, **kwargs)
        check_integer("num_images", num_images, 5)
        self.num_images = num_images

    def read(self) -> dict[str, SegmentationArrays]:
        """Draws the scenes."""
        sizes = {"train": (0, self.num_images)}
        sizes |= {split: (part, self.num_images // one_in) for split, (part, one_in) in EVAL_PARTS.items()}
        return {
            split: SegmentationArrays(*draw_scenes(count, self.seed, part), self.class_names, self.transforms)
            for split, (part, count) in sizes.items()
        }

    def check_data(self) -> None:
        """Does nothing: there are no files."""
