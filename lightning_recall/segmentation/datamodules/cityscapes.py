"""Cityscapes, fine annotations."""

from typing import Any

import numpy as np
from torchvision.datasets import Cityscapes

from lightning_recall.data.tables import require_path, user_path
from lightning_recall.segmentation.data import IGNORED_PIXEL, MaskFormat, SegmentationFiles, SegmentationTransforms
from lightning_recall.segmentation.datamodules.base import SegmentationDataModule

SOURCE = (
    "Download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com (free "
    "registration), unpack both, and pass the folder that holds leftImg8bit and gtFine as root."
)
CLASSES = [kind for kind in Cityscapes.classes if 0 <= kind.train_id < IGNORED_PIXEL]
TRANSFORMS = SegmentationTransforms(crop_size=768)


class CityscapesDataModule(SegmentationDataModule):
    """Cityscapes: street scenes of 50 cities, 2,975 training and 500 validation images, 2048 x 1024 pixels; 19 classes.

    Fine annotations. The 34 ids of the files become the 19 classes of the benchmark by torchvision's class table
    (`torchvision.datasets.Cityscapes.classes`, that of the cityscapesScripts); the other ids are ignored. The labels of
    the official test set are not public: validation and test both use the validation images, as most papers do. A score
    of the best checkpoint on them is therefore slightly optimistic.

    Source: Cordts, Omran, Ramos, Rehfeld, Enzweiler, Benenson, Franke, Roth, Schiele, "The Cityscapes Dataset for
    Semantic Urban Scene Understanding", CVPR 2016. Licence: non-commercial research.

    Args:
        root: folder that holds `leftImg8bit` and `gtFine`.
        transforms: settings of the joint transforms.
        kwargs: passed to `SegmentationDataModule`.

    Raises:
        ValueError: at setup, if a folder is missing.
    """

    class_names = tuple(kind.name for kind in sorted(CLASSES, key=lambda kind: kind.train_id))
    colors = np.array([kind.color for kind in sorted(CLASSES, key=lambda kind: kind.train_id)], dtype=np.uint8)

    def __init__(
        self, root: str = "data/cityscapes", transforms: SegmentationTransforms | None = TRANSFORMS, **kwargs: Any
    ) -> None:
        super().__init__(transforms=transforms or TRANSFORMS, **kwargs)
        self.root = user_path(root)

    def read(self) -> dict[str, SegmentationFiles]:
        """Lists images and masks of the training and validation cities."""
        train, val = self.read_split("train"), self.read_split("val")
        return {"train": train, "val": val, "test": val}

    def read_split(self, split: str) -> SegmentationFiles:
        """Images CITY/NAME_leftImg8bit.png and masks CITY/NAME_gtFine_labelIds.png of a split."""
        for name in ("leftImg8bit", "gtFine"):
            require_path(self.root / name / split, SOURCE)
        listed = Cityscapes(str(self.root), split=split, mode="fine", target_type="semantic")
        files = sorted(zip(listed.images, (target for (target,) in listed.targets), strict=True))
        files = [(image, mask) for image, mask in files if image.endswith("_leftImg8bit.png")]
        if not files:
            folder = self.root / "leftImg8bit" / split
            raise ValueError(f"{folder} holds no CITY/NAME_leftImg8bit.png. {SOURCE}")
        train_ids = {kind.id: kind.train_id for kind in Cityscapes.classes if kind.id >= 0}
        ids = {number: label if 0 <= label < IGNORED_PIXEL else IGNORED_PIXEL for number, label in train_ids.items()}
        images, masks = zip(*files, strict=True)
        return SegmentationFiles(
            images, masks, MaskFormat(ids, names=self.class_names), self.class_names, self.transforms
        )
