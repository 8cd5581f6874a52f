"""Stanford Cars, known as Cars196."""

from pathlib import Path
from typing import Any

import numpy as np

from lightning_recall.data.image_files import ImageFiles, ImageTransforms
from lightning_recall.data.tables import check_counts, check_files, integers, read_columns, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "root must hold one of the three forms in which the data set goes around: cars_annos.mat and car_ims/; or devkit/ "
    "with cars_train_annos.mat and cars_test_annos_withlabels.mat, cars_train/ and cars_test/; or, from Kaggle, "
    "names.csv, anno_train.csv, anno_test.csv and car_data/."
)
TRAIN_CLASSES = 98
Rows = list[tuple[str, int]]
"""path, class from 1"""


class Cars196DataModule(RetrievalDataModule):
    """Finds other pictures of a car's make, model and year: 16,185 images of 196 of them.

    The first 98 classes are for training, 8,054 images, the others for the test, 8,131; every test image queries all
    the others, Recall@1, 2, 4 and 8. The parts for classification that the files are named after are not used.
    `val_classes` of the training classes are set aside for validation.

    Source: Krause, Stark, Deng, Fei-Fei, "3D Object Representations for Fine-Grained Categorization", 3dRR 2013.
    Licence: non-commercial research. The original site is gone; three forms of the data go around, and which one is
    there is found by looking. Reading the .mat files needs scipy (`pip install scipy`).

    Args:
        root: folder that holds the annotations and the images.
        transforms: how files become tensors.
        kwargs: for `RetrievalDataModule`.

    Raises:
        ValueError: if annotations or an image are not there, or have no labels; when the data are set up.
        ImportError: if scipy is needed and not installed.
    """

    def __init__(self, root: str = "data/cars196", transforms: ImageTransforms | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, ImageFiles]:
        """Classes 1 to 98 for training, the others for the test."""
        forms = {"cars_annos.mat": read_one_mat, "devkit": read_devkit, "names.csv": read_kaggle}
        found = [(self.root / name, read) for name, read in forms.items() if (self.root / name).exists()]
        if not found:
            require_path(self.root / "cars_annos.mat", SOURCE)
        file, read = found[0]
        paths, classes = zip(*read(self.root), strict=True)
        labels = np.array(classes)
        data = ImageFiles(self.root, paths, labels, transforms=self.transforms)
        check_files(data, SOURCE)
        train, test = data.select(labels <= TRAIN_CLASSES), data.select(labels > TRAIN_CLASSES)
        check_counts(file, train, 8_054, 98)
        check_counts(file, test, 8_131, 98)
        return {"train": train, "test": test}


def read_one_mat(root: Path) -> Rows:
    """The form of one annotation file: images car_ims/000001.jpg, ..."""
    return read_mat(root / "cars_annos.mat", "relative_im_path", "")


def read_devkit(root: Path) -> Rows:
    """The form of two annotation files, of which that of the test must be the one with labels."""
    rows: Rows = []
    for part, name in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        file = next((file for file in (root / "devkit" / name, root / name) if file.exists()), root / "devkit" / name)
        rows += read_mat(require_path(file, SOURCE), "fname", f"cars_{part}/")
    return rows


def read_mat(file: Path, path_field: str, folder: str) -> Rows:
    """Rows of a MATLAB struct array `annotations`, whose fields are looked up by name: their order differs."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"Reading {file} needs scipy: pip install scipy") from error
    annotations = loadmat(str(file), squeeze_me=True).get("annotations")
    missing = {path_field, "class"} - set(getattr(getattr(annotations, "dtype", None), "names", None) or ())
    if missing:
        raise ValueError(f"{file} has no field {sorted(missing)[0]!r} in its annotations. {SOURCE}")
    annotations = np.atleast_1d(annotations)
    return [(folder + str(row[path_field]), int(row["class"])) for row in annotations]


def read_kaggle(root: Path) -> Rows:
    """The form of two CSV files without header, and a folder for each class."""
    (names,) = read_columns(require_path(root / "names.csv", SOURCE), ("name",), "\n", header=False)
    folder = next(
        (f for f in ("car_data/car_data", "car_data", "") if (root / f / "train").exists()), "car_data/car_data"
    )
    rows: Rows = []
    for part in ("train", "test"):
        columns = ("fname", "x1", "y1", "x2", "y2", "class")
        file = require_path(root / f"anno_{part}.csv", SOURCE)
        table = read_columns(file, columns, ",", header=False)
        for path, number in zip(table[0], integers(file, "class", table[5]).tolist(), strict=True):
            if not 1 <= number <= len(names):
                raise ValueError(f"{file}: class {number} of {path} is not among the {len(names)} of names.csv.")
            rows.append((f"{folder}/{part}/{names[number - 1].replace('/', '-')}/{path}", number))
    return rows
