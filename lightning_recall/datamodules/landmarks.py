"""Google Landmarks v2, the cleaned training set."""

from typing import Any

import numpy as np

from lightning_recall.data.image_files import ImageFiles, ImageTransforms
from lightning_recall.data.tables import check_counts, check_files, integers, read_columns, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "The images and train_clean.csv come from https://github.com/cvdfoundation/google-landmark: unpack the 500 train "
    "archives so that root holds train_clean.csv and train/0/0/0/0001...jpg."
)


class LandmarksDataModule(RetrievalDataModule):
    """Trains on landmarks: 1,580,470 images of 81,313 of them, Google Landmarks v2 clean.

    There is no test in it: test on revisited Oxford and Paris, with `RevisitedDataModule`. `val_classes` of the
    landmarks are set aside for validation.

    Source: Weyand, Araujo, Cao, Sim, "Google Landmarks Dataset v2", CVPR 2020; cleaned: Ozaki, Yokoo, "Large-scale
    Landmark Retrieval/Recognition under a Noisy and Diverse Dataset", 2019. Licence: annotations CC BY 4.0; each image
    has its own, and asks for its author's name (`train_attribution.csv`).

    Args:
        root: folder that holds `train_clean.csv` and `train`.
        transforms: how files become tensors.
        kwargs: for `RetrievalDataModule`.

    Raises:
        ValueError: if the list or an image is not there, or the list is broken; when the data are set up.
    """

    def __init__(
        self, root: str = "data/google_landmarks_v2", transforms: ImageTransforms | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, ImageFiles]:
        """Training: each line of the list is a landmark and its images."""
        file = require_path(self.root / "train_clean.csv", SOURCE)
        landmarks, lists = read_columns(file, ("landmark_id", "images"), ",")
        groups = [line.split() for line in lists]
        paths = [f"train/{i[0]}/{i[1]}/{i[2]}/{i}.jpg".encode() for group in groups for i in group]
        labels = np.repeat(integers(file, "landmark_id", landmarks), [len(group) for group in groups])
        data = ImageFiles(self.root, np.array(paths), labels, transforms=self.transforms)
        check_counts(file, data, 1_580_470, 81_313)
        check_files(data, SOURCE)
        return {"train": data}
