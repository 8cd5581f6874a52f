"""Caltech-UCSD Birds 200-2011."""

from typing import Any

import numpy as np

from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.data.tables import (
    check_counts,
    check_files,
    parse_integers,
    read_columns,
    require_path,
    user_path,
)
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "Unpack CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/ (the 2011 edition, not CUB-200 "
    "of 2010) and pass the folder that holds images.txt as root."
)
TRAIN_CLASSES = 100


class CUB200DataModule(RetrievalDataModule):
    """CUB-200-2011: 11,788 images of 200 bird species; retrieves images of the same species.

    Train: 5,864 images of the first 100 species. Test: 5,924 images of the other 100; every test image is a query
    against all others. Metrics: Recall@1, 2, 4, 8. `train_test_split.txt`, made for classification, and the bounding
    boxes are not used. `val_classes` of the training species are held out for validation.

    Source: Wah, Branson, Welinder, Perona, Belongie, "The Caltech-UCSD Birds-200-2011 Dataset", 2011. Licence:
    non-commercial research; the photographers hold the copyright of the images.

    Args:
        root: folder `CUB_200_2011`.
        transforms: image loading and transforms.
        kwargs: passed to `RetrievalDataModule`.

    Raises:
        ValueError: at setup, if a list or an image is missing, or a list is malformed.
    """

    def __init__(
        self, root: str = "data/CUB_200_2011", transforms: ImageTransforms | None = ImageTransforms(), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, ImageFiles]:
        """Uses classes 1 to 100 for training, the others for the test."""
        files = (
            require_path(self.root / "images.txt", SOURCE),
            require_path(self.root / "image_class_labels.txt", SOURCE),
        )
        ids, paths = read_columns(files[0], ("id", "path"), header=False)
        label_ids, classes = read_columns(files[1], ("id", "class"), header=False)
        class_of = dict(zip(label_ids, parse_integers(files[1], "class", classes).tolist(), strict=True))
        unknown = [name for name in ids if name not in class_of]
        if unknown:
            raise ValueError(f"{files[1]} has no class for image {unknown[0]} of {files[0].name}.")
        labels = np.array([class_of[name] for name in ids])
        data = ImageFiles(self.root / "images", paths, labels, transforms=self.transforms)
        check_files(data, SOURCE)
        train = data.select(labels <= TRAIN_CLASSES)
        test = data.select(labels > TRAIN_CLASSES)
        check_counts(files[0], train, 5_864, 100)
        check_counts(files[0], test, 5_924, 100)
        return {"train": train, "test": test}
