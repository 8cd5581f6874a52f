"""Google Landmarks v2, the cleaned training set."""

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
    "Download train_clean.csv and the 500 train archives from https://github.com/cvdfoundation/google-landmark, and "
    "unpack them so that root holds train_clean.csv and train/0/0/0/0001...jpg."
)


class LandmarksDataModule(RetrievalDataModule):
    """Google Landmarks v2 clean: 1,580,470 images of 81,313 landmarks, for training.

    It has no test set: test on revisited Oxford and Paris, with `RevisitedDataModule`. `val_classes` of the landmarks
    are held out for validation.

    Source: Weyand, Araujo, Cao, Sim, "Google Landmarks Dataset v2", CVPR 2020; cleaned: Ozaki, Yokoo, "Large-scale
    Landmark Retrieval/Recognition under a Noisy and Diverse Dataset", 2019. Licence: annotations CC BY 4.0; each image
    has its own licence and requires attribution (`train_attribution.csv`).

    Args:
        root: folder that holds `train_clean.csv` and `train`.
        transforms: image loading and transforms.
        kwargs: passed to `RetrievalDataModule`.

    Raises:
        ValueError: at setup, if the list or an image is missing, or the list is malformed.
    """

    def __init__(
        self,
        root: str = "data/google_landmarks_v2",
        transforms: ImageTransforms | None = ImageTransforms(),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, ImageFiles]:
        """Reads the training list; each line holds a landmark and its images."""
        file = require_path(self.root / "train_clean.csv", SOURCE)
        landmarks, lists = read_columns(file, ("landmark_id", "images"), ",")
        image_ids = [line.split() for line in lists]
        paths = [f"train/{i[0]}/{i[1]}/{i[2]}/{i}.jpg".encode() for ids in image_ids for i in ids]
        labels = np.repeat(parse_integers(file, "landmark_id", landmarks), [len(ids) for ids in image_ids])
        data = ImageFiles(self.root, np.array(paths), labels, transforms=self.transforms)
        check_counts(file, data, 1_580_470, 81_313)
        check_files(data, SOURCE)
        return {"train": data}
