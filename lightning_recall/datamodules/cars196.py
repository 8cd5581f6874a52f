"""Stanford Cars, known as Cars196."""

from pathlib import Path
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
    "root must contain one of the three distributed layouts: cars_annos.mat and car_ims/; or devkit/ with "
    "cars_train_annos.mat and cars_test_annos_withlabels.mat, cars_train/ and cars_test/; or, from Kaggle, "
    "names.csv, anno_train.csv, anno_test.csv and car_data/."
)
TRAIN_CLASSES = 98
PathsAndClasses = list[tuple[str, int]]
"""(path, class from 1) of each image"""


class Cars196DataModule(RetrievalDataModule):
    """Cars196: 16,185 images of 196 car models; retrieves images of the same make, model and year.

    Train: 8,054 images of the first 98 classes. Test: 8,131 images of the other 98; every test image is a query against
    all others. Metrics: Recall@1, 2, 4, 8. The train/test split for classification is not used. `val_classes` of the
    training classes are held out for validation.

    Source: Krause, Stark, Deng, Fei-Fei, "3D Object Representations for Fine-Grained Categorization", 3dRR 2013.
    Licence: non-commercial research. The original site is offline; three layouts of the data are in use, and the
    layout is detected automatically. Reading the .mat files needs scipy (`pip install scipy`).

    Args:
        root: folder that holds the annotations and the images.
        transforms: image loading and transforms.
        kwargs: passed to `RetrievalDataModule`.

    Raises:
        ValueError: at setup, if annotations or images are missing, or annotations have no labels.
        ImportError: if scipy is needed and not installed.
    """

    def __init__(
        self, root: str = "data/cars196", transforms: ImageTransforms | None = ImageTransforms(), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, ImageFiles]:
        """Uses classes 1 to 98 for training, the others for the test."""
        layouts = {"cars_annos.mat": read_one_mat, "devkit": read_devkit, "names.csv": read_kaggle}
        found = [(self.root / name, read) for name, read in layouts.items() if (self.root / name).exists()]
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


def read_one_mat(root: Path) -> PathsAndClasses:
    """The layout with a single annotation file: images car_ims/000001.jpg, ..."""
    return read_mat(root / "cars_annos.mat", "relative_im_path", "")


def read_devkit(root: Path) -> PathsAndClasses:
    """The layout with two annotation files; the test file must be the one with labels."""
    rows: PathsAndClasses = []
    for part, name in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        file = next((file for file in (root / "devkit" / name, root / name) if file.exists()), root / "devkit" / name)
        rows += read_mat(require_path(file, SOURCE), "fname", f"cars_{part}/")
    return rows


def read_mat(file: Path, path_field: str, folder: str) -> PathsAndClasses:
    """Reads the MATLAB struct array `annotations` by field name, since the order of fields varies."""
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


def read_kaggle(root: Path) -> PathsAndClasses:
    """The Kaggle layout: two CSV files without header and one folder per class."""
    (names,) = read_columns(require_path(root / "names.csv", SOURCE), ("name",), "\n", header=False)
    folder = next(
        (f for f in ("car_data/car_data", "car_data", "") if (root / f / "train").exists()), "car_data/car_data"
    )
    rows: PathsAndClasses = []
    for part in ("train", "test"):
        columns = ("fname", "x1", "y1", "x2", "y2", "class")
        file = require_path(root / f"anno_{part}.csv", SOURCE)
        table = read_columns(file, columns, ",", header=False)
        for path, number in zip(table[0], parse_integers(file, "class", table[5]).tolist(), strict=True):
            if not 1 <= number <= len(names):
                raise ValueError(
                    f"{file}: class {number} of {path} is not one of the {len(names)} classes in names.csv."
                )
            rows.append((f"{folder}/{part}/{names[number - 1].replace('/', '-')}/{path}", number))
    return rows
