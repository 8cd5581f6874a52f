"""Revisited Oxford and Paris, with and without a million distractors."""

import pickle
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_recall.data.image_files import ImageFiles, ImageTransforms
from lightning_recall.data.tables import check_files, read_columns, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule

SOURCE = (
    "The ground truth and the images come from http://cmp.felk.cvut.cz/revisitop: root must hold NAME/gnd_NAME.pkl and "
    "NAME/jpg/, NAME being roxford5k or rparis6k, and for distractors revisitop1m/revisitop1m.txt and revisitop1m/jpg/."
)
HARMLESS = {
    *(
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    ),
    *((module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
}


class PlainUnpickler(pickle.Unpickler):
    """Reads numbers, strings, lists, dicts and arrays; anything else a file might run is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Classes that arrays are made of."""
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no ground truth needs.")
        return super().find_class(module, name)


class RevisitedData(ImageFiles):
    """Queries, then gallery; `ground_truth` tells of each query which gallery images are (easy, hard, junk)."""

    ground_truth: list[tuple[list[int], list[int], list[int]]]


class RevisitedDataModule(RetrievalDataModule):
    """Tests landmark retrieval: 70 queries in 4,993 images of Oxford, or in 6,322 of Paris, or in a million more.

    There is no training in it: train on `LandmarksDataModule`, for example. Queries are cut out by their box, and
    images keep their shape, at most 1,024 pixels long, so that they are embedded one by one. `RetrievalEvaluation`
    scores mAP and mP@k of the protocols Easy, Medium and Hard.

    Source: Radenovic, Iscen, Tolias, Avrithis, Chum, "Revisiting Oxford and Paris: Large-Scale Image Retrieval
    Benchmarking", CVPR 2018. Licence: the images are their Flickr authors'.

    Args:
        root: folder that holds `roxford5k`, `rparis6k` and perhaps `revisitop1m`.
        benchmark: "roxford5k" or "rparis6k".
        distractors: whether the 1,001,001 images of R1M are searched too.
        transforms: how files become tensors.
        eval_batch_size: images in one pass; more than one needs images of one size.
        kwargs: for `RetrievalDataModule`.

    Raises:
        ValueError: if the ground truth or an image is not there, or the ground truth holds anything but data; when the
            data are set up.
    """

    def __init__(
        self,
        root: str = "data/revisitop",
        benchmark: Literal["roxford5k", "rparis6k"] = "roxford5k",
        distractors: bool = False,
        transforms: ImageTransforms | None = None,
        eval_batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(eval_batch_size=eval_batch_size, **kwargs)
        self.root = user_path(root)
        self.benchmark = benchmark
        self.distractors = distractors
        self.transforms = transforms or ImageTransforms(longest_side=1024)

    def read(self) -> dict[str, ImageFiles]:
        """The test: queries, gallery and distractors, in this order."""
        file = require_path(self.root / self.benchmark / f"gnd_{self.benchmark}.pkl", SOURCE)
        with file.open("rb") as opened:
            truth = read_ground_truth(file, opened)
        names = [*truth["qimlist"], *truth["imlist"]]
        paths = [f"{self.benchmark}/jpg/{name}.jpg" for name in names]
        if self.distractors:
            (more,) = read_columns(
                require_path(self.root / "revisitop1m" / "revisitop1m.txt", SOURCE), ("path",), header=False
            )
            paths += [f"revisitop1m/jpg/{name}" for name in more]
        is_query = np.arange(len(paths)) < len(truth["qimlist"])
        boxes = np.full((len(paths), 4), np.nan)
        boxes[is_query] = [query["bbx"] for query in truth["gnd"]]
        labels = np.arange(len(paths))
        data = RevisitedData(self.root, paths, labels, None, boxes, is_query, ~is_query, self.transforms)
        data.ground_truth = [(list(q["easy"]), list(q["hard"]), list(q["junk"])) for q in truth["gnd"]]
        check_files(data, SOURCE)
        return {"test": data}


def read_ground_truth(path: Path, file: BufferedReader) -> dict[str, Any]:
    """The dict of a ground-truth file: imlist, qimlist and gnd.

    Raises:
        ValueError: if it is none.
    """
    try:
        truth = PlainUnpickler(file, encoding="latin1").load()
        missing = {"imlist", "qimlist", "gnd"} - set(truth)
        wrong = missing or any({"bbx", "easy", "hard", "junk"} - set(query) for query in truth["gnd"])
    except Exception as error:  # a broken file raises anything
        raise ValueError(f"{path} cannot be read as a ground truth: {error} {SOURCE}") from error
    if wrong:
        raise ValueError(f"{path} is not a ground truth of revisited Oxford and Paris. {SOURCE}")
    result: dict[str, Any] = truth
    return result
