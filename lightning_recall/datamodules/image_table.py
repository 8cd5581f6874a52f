"""Your own images, listed in a CSV file."""

import os
from typing import Any

from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.data.folders import SPLIT_NAMES, split_of
from lightning_recall.data.messages import quote, shorten
from lightning_recall.data.tables import check_files, column_names, read_columns, require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule, prepares_data
from lightning_recall.datamodules.splits import (
    check_class_names,
    image_files,
    split_by_name,
    split_classes,
)

SOURCE = "Pass a CSV file with columns path and label; paths are relative to its folder."


class ImageTableDataModule(RetrievalDataModule):
    """Data module for images listed in a CSV file with columns `path`, `label` and optionally `split`.

    Paths are absolute, start with ~, or are relative to the CSV file's folder; labels are strings. `split` is train,
    val or test; for separate queries and gallery, use query and gallery instead of test. Without `split`, randomly
    drawn classes form the test set: `test_classes` is their fraction or number, `seed` the random seed. Unless `split`
    has val, randomly drawn training classes are held out for validation (`val_classes` is their fraction or number).
    Names of columns and splits may be in upper or lower case; training, valid, validation, dev, testing and queries
    mean the same as train, val, test and query. An image that is both query and gallery is listed twice.

    Args:
        file: the CSV file, UTF-8, whose first line names the columns; ~ is the home folder.
        test_classes: fraction or number of classes; only without `split`.
        transforms: image loading and transforms.
        kwargs: passed to `RetrievalDataModule`.

    Raises:
        ValueError: if there is no such file; at setup, in these cases:

            - A column, a cell or one of 200 checked images is missing.
            - There are too few classes, or a class is in two splits.
            - A split name is unknown.
            - An image has two labels.
    """

    def __init__(
        self,
        file: str,
        test_classes: float = 0.2,
        transforms: ImageTransforms | None = ImageTransforms(),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.file = user_path(file)
        self.test_classes = test_classes
        self.transforms = transforms or ImageTransforms()
        if not prepares_data(self):
            self.check_root()

    def check_root(self) -> None:
        """Raises ValueError if there is no file; the constructor calls it, unless `prepare_data` makes the data."""
        require_path(self.file, SOURCE)

    def read(self) -> dict[str, ImageFiles]:
        """Reads the splits from the file, or splits classes at random."""
        file, root = require_path(self.file, SOURCE), self.file.parent
        paths, classes = read_columns(file, ("path", "label"), ",")
        paths = [os.path.expanduser(path) for path in paths]
        has_split = "split" in column_names(file, ",")
        (splits,) = read_columns(file, ("split",), ",") if has_split else ([],)
        files = [os.path.abspath(root / path) for path in paths]
        label_of = dict(zip(files, classes, strict=True))
        for path, name, label in zip(files, paths, classes, strict=True):
            if label_of[path] != label:
                labels_given = f"{quote(shorten(label, 60))} and {quote(shorten(label_of[path], 60))}"
                raise ValueError(f"{shorten(file)}: {quote(name)} has the labels {labels_given}: keep one of them.")
        check_class_names(classes, file)
        data = image_files(root, paths, classes, self.transforms)
        check_files(data, SOURCE)
        if not splits:
            return split_classes(data, self.test_classes, self.seed)
        known = [split_of(split) for split in splits]
        if None in known:
            wrong = known.index(None)
            raise ValueError(
                f"{shorten(file)}: split must be one of {', '.join(SPLIT_NAMES)}, got {quote(splits[wrong])} for "
                f"{quote(paths[wrong])}."
            )
        return split_by_name(root, [split for split in known if split], paths, classes, self.transforms)
