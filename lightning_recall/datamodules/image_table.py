"""Your own images, listed in a CSV file."""

import os
from pathlib import Path
from typing import Any

from lightning_recall.datamodules.base import RetrievalDataModule
from lightning_recall.datamodules.image_files import ImageFiles, ImageLoading
from lightning_recall.datamodules.image_folder import split_classes, split_parts
from lightning_recall.datamodules.tables import check_files, column_names, existing, numbered, read_columns

PARTS = ("train", "val", "test", "query", "gallery")


class ImageTableDataModule(RetrievalDataModule):
    """Finds other images of a class, in a CSV file of your own with the columns `path`, `label` and perhaps `split`.

    Paths start from the file's folder, or are absolute; labels are any text. `split` is train, val, test, or query and
    gallery, which make a test in which the images of the first search those of the second. Without it, `test_classes`
    of the classes, drawn at random by `seed`, are the test. `val_classes` of the training classes are set aside for
    validation, unless some are val.

    Args:
        file: the CSV file, UTF-8, whose first line names the columns.
        test_classes: a share of the classes, or a number; only without `split`.
        images: how files become tensors.
        kwargs: for `RetrievalDataModule`.

    Raises:
        ValueError: if the file, a column or one of 200 images that are looked up is not there, for too few classes,
            another word as split, an image with two labels, or one class in two parts; when the data are set up.
    """

    def __init__(self, file: str, test_classes: float = 0.2, images: ImageLoading | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.file = Path(file)
        self.test_classes = test_classes
        self.images = images or ImageLoading()

    def read(self) -> dict[str, ImageFiles]:
        """The parts that the file tells, or classes drawn at random."""
        source = "Give a CSV file with the columns path and label, and paths from its folder."
        file, root = existing(self.file, source), self.file.parent
        paths, classes = read_columns(file, ("path", "label"), ",")
        told = any(name.lower() == "split" for name in column_names(file, ","))
        (parts,) = read_columns(file, ("split",), ",") if told else ([],)
        if "" in classes:
            raise ValueError(
                f"{file}: {classes.count('')} lines have no label, the first for {paths[classes.index('')]}."
            )
        files = [os.path.abspath(root / path) for path in paths]
        label_of = dict(zip(files, classes, strict=True))
        for path, label in zip(files, classes, strict=True):
            if label_of[path] != label:
                raise ValueError(f"{file}: {path} has the labels {label!r} and {label_of[path]!r}: keep one of them.")
        (labels,) = numbered(classes)
        data = ImageFiles(root, paths, labels, loading=self.images)
        check_files(data, source)
        if not parts:
            return split_classes(data, self.test_classes, self.seed)
        unknown = sorted(set(parts) - set(PARTS))
        if unknown:
            raise ValueError(f"{file}: split must be one of {', '.join(PARTS)}, got {unknown[0]!r}.")
        return split_parts(root, parts, paths, classes, self.images)
