"""Your own images, listed in a CSV file."""

import os
from typing import Any

from lightning_recall.data.image_files import ImageFiles, ImageTransforms
from lightning_recall.data.messages import quote, short
from lightning_recall.data.tables import check_files, column_names, read_columns, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule
from lightning_recall.datamodules.splits import (
    PART_NAMES,
    check_class_names,
    image_files,
    part_of,
    split_classes,
    split_parts,
)


class ImageTableDataModule(RetrievalDataModule):
    """Finds other images of a class, in a CSV file of your own with the columns `path`, `label` and perhaps `split`.

    Paths start from the file's folder, or are absolute, or begin with ~, the home folder; labels are any text. `split`
    is train, val, test, or query and gallery, which make a test in which the images of the first search those of the
    second. Without it, `test_classes` of the classes, drawn at random by `seed`, are the test. `val_classes` of the
    training classes are set aside for validation, unless some are val. Names of columns and splits may be in upper or
    lower case; training, valid, validation, dev, testing and queries mean the same as train, val, test and query. An
    image that is both query and gallery stands in a line of each.

    Args:
        file: the CSV file, UTF-8, whose first line names the columns; ~ is the home folder.
        test_classes: a share of the classes, or a number; only without `split`.
        transforms: how files become tensors.
        kwargs: for `RetrievalDataModule`.

    Raises:
        ValueError: if the file, a column, a cell or one of 200 images that are looked up is not there, for too few
            classes, another word as split, an image with two labels, or one class in two parts; when the data are set
            up.
    """

    def __init__(
        self, file: str, test_classes: float = 0.2, transforms: ImageTransforms | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.file = user_path(file)
        self.test_classes = test_classes
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, ImageFiles]:
        """The parts that the file names, or classes drawn at random."""
        source = "Give a CSV file with the columns path and label, and paths from its folder."
        file, root = require_path(self.file, source), self.file.parent
        paths, classes = read_columns(file, ("path", "label"), ",")
        paths = [os.path.expanduser(path) for path in paths]
        named = "split" in column_names(file, ",")
        (splits,) = read_columns(file, ("split",), ",") if named else ([],)
        files = [os.path.abspath(root / path) for path in paths]
        label_of = dict(zip(files, classes, strict=True))
        for path, name, label in zip(files, paths, classes, strict=True):
            if label_of[path] != label:
                labels_given = f"{quote(short(label, 60))} and {quote(short(label_of[path], 60))}"
                raise ValueError(f"{short(file)}: {quote(name)} has the labels {labels_given}: keep one of them.")
        check_class_names(classes, file)
        data = image_files(root, paths, classes, self.transforms)
        check_files(data, source)
        if not splits:
            return split_classes(data, self.test_classes, self.seed)
        parts = [part_of(split) for split in splits]
        if None in parts:
            place = parts.index(None)
            raise ValueError(
                f"{short(file)}: split must be one of {', '.join(PART_NAMES)}, got {quote(splits[place])} for "
                f"{quote(paths[place])}."
            )
        return split_parts(root, [part for part in parts if part], paths, classes, self.transforms)
