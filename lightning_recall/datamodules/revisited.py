"""Revisited Oxford and Paris, with and without a million distractors."""

import pickle
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.data.tables import check_files, read_columns, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "Download the ground truth and the images from http://cmp.felk.cvut.cz/revisitop: root must hold NAME/gnd_NAME.pkl "
    "and NAME/jpg/ with NAME roxford5k or rparis6k, and for distractors revisitop1m/revisitop1m.txt and "
    "revisitop1m/jpg/."
)
TRANSFORMS = ImageTransforms(longest_side=1024)
ALLOWED_GLOBALS = {
    *(
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    ),
    *((module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
}


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickles only numbers, strings, lists, dicts and arrays.

    Other classes and functions could run code and are rejected.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Allows only the classes that numpy arrays need."""
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it references {module}.{name}, which is not allowed.")
        return super().find_class(module, name)


class RevisitedData(ImageFiles):
    """Image files of the queries followed by the gallery.

    Attributes:
        ground_truth: (easy, hard, junk) lists of gallery indices for each query.
    """

    ground_truth: list[tuple[list[int], list[int], list[int]]]


class RevisitedDataModule(RetrievalDataModule):
    """Revisited Oxford (4,993 images) or Paris (6,322), with 70 queries each and optionally a million distractors.

    It has no training set: train on `LandmarksDataModule`, for example. Queries are cropped to their box, and images
    keep their aspect ratio with a longer side of at most 1,024 pixels, so the batch size is 1. `RetrievalEvaluation`
    computes mAP and mP@k of the protocols Easy, Medium and Hard.

    Source: Radenovic, Iscen, Tolias, Avrithis, Chum, "Revisiting Oxford and Paris: Large-Scale Image Retrieval
    Benchmarking", CVPR 2018. Licence: the Flickr authors hold the copyright of the images.

    Args:
        root: folder that holds `roxford5k`, `rparis6k` and, for distractors, `revisitop1m`.
        benchmark: "roxford5k" or "rparis6k".
        distractors: whether the 1,001,001 images of R1M are added to the gallery.
        transforms: image loading and transforms.
        eval_batch_size: batch size; values above 1 require images of equal size.
        kwargs: passed to `RetrievalDataModule`.

    Raises:
        ValueError: at setup, if the ground truth or an image is missing, or the ground truth references classes or
            functions that are not allowed.
    """

    def __init__(
        self,
        root: str = "data/revisitop",
        benchmark: Literal["roxford5k", "rparis6k"] = "roxford5k",
        distractors: bool = False,
        transforms: ImageTransforms | None = TRANSFORMS,
        eval_batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(eval_batch_size=eval_batch_size, **kwargs)
        self.root = user_path(root)
        self.benchmark = benchmark
        self.distractors = distractors
        self.transforms = transforms or TRANSFORMS

    def read(self) -> dict[str, ImageFiles]:
        """Reads the test set: queries, gallery and distractors, in this order."""
        file = require_path(self.root / self.benchmark / f"gnd_{self.benchmark}.pkl", SOURCE)
        with file.open("rb") as pickle_file:
            truth = read_ground_truth(file, pickle_file)
        names = [*truth["qimlist"], *truth["imlist"]]
        paths = [f"{self.benchmark}/jpg/{name}.jpg" for name in names]
        if self.distractors:
            (distractor_names,) = read_columns(
                require_path(self.root / "revisitop1m" / "revisitop1m.txt", SOURCE), ("path",), header=False
            )
            paths += [f"revisitop1m/jpg/{name}" for name in distractor_names]
        is_query = np.arange(len(paths)) < len(truth["qimlist"])
        boxes = np.full((len(paths), 4), np.nan)
        boxes[is_query] = [query["bbx"] for query in truth["gnd"]]
        labels = np.arange(len(paths))
        data = RevisitedData(self.root, paths, labels, None, boxes, is_query, ~is_query, self.transforms)
        data.ground_truth = [(list(q["easy"]), list(q["hard"]), list(q["junk"])) for q in truth["gnd"]]
        check_files(data, SOURCE)
        return {"test": data}


def read_ground_truth(path: Path, file: BufferedReader) -> dict[str, Any]:
    """Reads the dict of a ground-truth file: imlist, qimlist and gnd.

    Raises:
        ValueError: if the file is not a valid ground truth.
    """
    try:
        truth = RestrictedUnpickler(file, encoding="latin1").load()
        missing = {"imlist", "qimlist", "gnd"} - set(truth)
        wrong = missing or any({"bbx", "easy", "hard", "junk"} - set(query) for query in truth["gnd"])
    except Exception as error:  # a malformed file may raise any exception
        raise ValueError(f"{path} cannot be read as a ground truth: {error} {SOURCE}") from error
    if wrong:
        raise ValueError(f"{path} is not a ground truth of revisited Oxford and Paris. {SOURCE}")
    result: dict[str, Any] = truth
    return result
