"""Reads the lists that data sets come with, and says what is wrong with them."""

import csv
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from lightning_recall.datamodules.image_files import ImageFiles

LOOKED_UP = 200  # files of a data set whose existence is checked


def existing(path: Path, source: str) -> Path:
    """A file or folder of a data set.

    Args:
        path: where it should be.
        source: where the data set comes from and how it is unpacked, for the error.

    Raises:
        ValueError: if it is not there.
    """
    if not path.exists():
        parent = next(parent for parent in path.parents if parent.exists())
        raise ValueError(f"{path} is not there (but {parent} is). {source}")
    return path


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file to read.

    Raises:
        ValueError: if it is none; it names the file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text ({error}): save it as such.") from error


def read_columns(
    path: Path, columns: Sequence[str], delimiter: str | None = None, header: bool = True, skip: int = 0
) -> list[list[str]]:
    """Some columns of a text file, as strings; empty lines and Windows line ends do not matter.

    Args:
        path: UTF-8 text.
        columns: names that the header must have; without a header, the names of all columns in order.
        delimiter: what separates the columns, "," also with quoted cells; None: any number of spaces.
        header: whether the first line names the columns.
        skip: lines before that.

    Raises:
        ValueError: for a missing column, a line with too few cells, no line at all, or text that is not UTF-8; it names
            the file.
    """
    with opened(path) as file:
        lines = csv.reader(file) if delimiter == "," else (line.split(delimiter) for line in file)
        wanted = enumerate(islice(lines, skip, None), skip + 1)
        rows = [(number, [cell.strip() for cell in row]) for number, row in wanted if "".join(row).strip()]
    names = rows.pop(0)[1] if header and rows else list(columns)
    missing = [name for name in columns if name not in names]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}: its first line names {names}.")
    if not rows:
        raise ValueError(f"{path} lists nothing.")
    places = [names.index(name) for name in columns]
    for number, row in rows:
        if len(row) <= max(places):
            raise ValueError(f"{path}, line {number}: {len(row)} cells where {len(names)} are needed: {' '.join(row)}")
    return [[row[place] for _, row in rows] for place in places]


def column_names(path: Path, delimiter: str) -> list[str]:
    """The names in the first line of a text file that is not empty."""
    with opened(path) as file:
        rows = csv.reader(file, delimiter=delimiter)
        return next(([cell.strip() for cell in row] for row in rows if "".join(row).strip()), [])


def integers(path: Path, column: str, values: Sequence[str]) -> NDArray[np.int64]:
    """A column of integers.

    Raises:
        ValueError: if one is none; it names the file.
    """
    try:
        return np.array(values, dtype=np.int64)
    except (ValueError, OverflowError):
        wrong = next(value for value in values if not re.fullmatch("-?[0-9]{1,18}", value))
        raise ValueError(f"{path}: {column} must be an integer of at most 18 digits, got {wrong!r}.") from None


def check_files(data: ImageFiles, source: str) -> None:
    """Looks some files up, spread over the list.

    Raises:
        ValueError: if one is missing, as in an archive that is not unpacked to its end.
    """
    rows = np.unique(np.linspace(0, len(data) - 1, LOOKED_UP).astype(int)) if len(data) else np.zeros(0, dtype=int)
    missing = [path for path in map(data.path, rows) if not Path(path).exists()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(rows)} files that were looked up are not there, such as {missing[0]}. {source}"
        )


def check_counts(file: Path, data: Any, images: int, classes: int) -> None:
    """Warns where a list has not as many images and classes as the published one."""
    found = len(data), len(np.unique(data.labels))
    if found != (images, classes):
        warnings.warn(
            f"{file} lists {found[0]:,} images of {found[1]:,} classes, where the published split has {images:,} of "
            f"{classes:,}: results cannot be compared with published ones.",
            stacklevel=3,
        )


def numbered(*names: Sequence[str]) -> list[NDArray[np.int64]]:
    """Labels from 0 in place of names, the same for the same name in all lists."""
    known, labels = np.unique(np.concatenate([np.asarray(part, dtype=object) for part in names]), return_inverse=True)
    assert len(known)  # read_columns refuses empty lists
    return np.split(labels.astype(np.int64).ravel(), np.cumsum([len(part) for part in names])[:-1])
