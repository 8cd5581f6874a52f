"""Caltech-UCSD Birds 200-2011."""

from typing import Any

import numpy as np

from lightning_recall.data.image_files import ImageFiles, ImageTransforms
from lightning_recall.data.tables import check_counts, check_files, integers, read_columns, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "Unpack CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/ (the 2011 edition, not CUB-200 "
    "of 2010) and give the folder that holds images.txt as root."
)
TRAIN_CLASSES = 100


class CUB200DataModule(RetrievalDataModule):
    """Finds other pictures of a bird's species: 11,788 images of 200 species.

    The first 100 species are for training, 5,864 images, the others for the test, 5,924; every test image queries all
    the others, Recall@1, 2, 4 and 8. `train_test_split.txt`, made for classification, is not used, and neither are the
    bounding boxes. `val_classes` of the training species are set aside for validation.

    Source: Wah, Branson, Welinder, Perona, Belongie, "The Caltech-UCSD Birds-200-2011 Dataset", 2011. Licence:
    non-commercial research; the images are their photographers'.

    Args:
        root: folder `CUB_200_2011`.
        transforms: how files become tensors.
        kwargs: for `RetrievalDataModule`.

    Raises:
        ValueError: if a list or an image is not there, or a list is broken; when the data are set up.
    """

    def __init__(
        self, root: str = "data/CUB_200_2011", transforms: ImageTransforms | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, ImageFiles]:
        """Classes 1 to 100 for training, the others for the test."""
        files = (
            require_path(self.root / "images.txt", SOURCE),
            require_path(self.root / "image_class_labels.txt", SOURCE),
        )
        ids, paths = read_columns(files[0], ("id", "path"), header=False)
        labeled, classes = read_columns(files[1], ("id", "class"), header=False)
        class_of = dict(zip(labeled, integers(files[1], "class", classes).tolist(), strict=True))
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
