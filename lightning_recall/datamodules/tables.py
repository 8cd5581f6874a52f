"""Reads the lists that data sets come with, and says what is wrong with them."""

import csv
import os
import re
import reprlib
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
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}

shortened = reprlib.Repr()
shortened.maxstring = 120
quote = shortened.repr
"""A value in quotes for a message, its middle left out where it is long."""


def user_path(path: str | Path) -> Path:
    """A path that a user gives; ~ is the home folder."""
    return Path(os.path.expanduser(path))


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
        ValueError: if it is none, or cannot be opened; it names the file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as UTF-8 text ({error}): save it as such.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


def cells(path: Path, delimiter: str | None, skip: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Numbers from 1 and cells of the lines that are not empty.

    Raises:
        ValueError: for a quote that its line does not close, NUL characters, or text that is not UTF-8.
    """
    with opened(path) as file:
        for number, line in enumerate(islice(file, skip, None), skip + 1):
            if "\0" in line:
                raise ValueError(f"{path}, line {number}: it has NUL characters. Save the file as UTF-8 text.")
            if delimiter is None or delimiter == "\n":
                row = line.split(delimiter)
            else:
                try:  # one line at a time: an open quote would swallow those that follow
                    row = next(csv.reader([line], delimiter=delimiter, strict=True), [])
                except csv.Error as error:
                    raise ValueError(
                        f'{path}, line {number}: a quote (") is not closed in its line, or text follows it ({error}): '
                        f"{quote(line.strip())}."
                    ) from error
            if "".join(row).strip():
                yield number, [cell.strip() for cell in row]


def read_columns(
    path: Path, columns: Sequence[str], delimiter: str | None = None, header: bool = True, skip: int = 0
) -> list[list[str]]:
    """Some columns of a text file, as strings; empty lines and Windows line ends do not matter.

    Args:
        path: UTF-8 text.
        columns: names that the header must have, in upper or lower case; without a header, the names of all columns in
            order.
        delimiter: what separates the columns, "," also with quoted cells; None: any number of spaces.
        header: whether the first line names the columns.
        skip: lines before that.

    Raises:
        ValueError: for a missing or repeated column, a line with too few or too many cells, an empty cell, no line at
            all, or text that is not UTF-8; it names the file.
    """
    rows = cells(path, delimiter, skip)
    names = [name.lower() for name in next(rows, (0, list(columns)))[1]] if header else list(columns)
    places = [place_of(path, name, names, delimiter) for name in columns]
    table: list[list[str]] = [[] for _ in columns]
    for number, row in rows:
        if len(row) <= max(places) or (delimiter == "," and any(row[len(names) :])):
            raise ValueError(
                f"{path}, line {number}: {len(row)} cells where {len(names)} are needed: {quote(' '.join(row))}."
            )
        for values, place, name in zip(table, places, columns, strict=True):
            if not row[place]:
                raise ValueError(f"{path}, line {number}: the {name} is empty.")
            values.append(row[place])
    if not table[0]:
        raise ValueError(f"{path} lists nothing.")
    return table


def place_of(path: Path, column: str, names: list[str], delimiter: str | None) -> int:
    """Number of a column.

    Raises:
        ValueError: if no column is called so, or several are.
    """
    if names.count(column) == 1:
        return names.index(column)
    known = f"its first line names {quote(', '.join(names))}."
    if column in names:
        raise ValueError(f"{path} has several columns {column!r}: {known}")
    used = next((name for mark, name in DELIMITERS.items() if mark != delimiter and mark in "".join(names)), None)
    if used and delimiter:
        known += f" {used.capitalize()} separate its cells: save it with {DELIMITERS[delimiter]}."
    raise ValueError(f"{path} has no column {column!r}: {known}")


def column_names(path: Path, delimiter: str) -> list[str]:
    """The names, in lower case, in the first line of a text file that is not empty."""
    return [name.lower() for name in next(cells(path, delimiter), (0, []))[1]]


def integers(path: Path, column: str, values: Sequence[str]) -> NDArray[np.int64]:
    """A column of integers.

    Raises:
        ValueError: if one is none; it names the file.
    """
    try:
        return np.array(values, dtype=np.int64)
    except (ValueError, OverflowError):
        wrong = next(value for value in values if not re.fullmatch("-?[0-9]{1,18}", value))
        raise ValueError(f"{path}: {column} must be an integer of at most 18 digits, got {quote(wrong)}.") from None


def check_files(data: ImageFiles, source: str) -> None:
    """Looks some files up, spread over the list.

    Raises:
        ValueError: if one is missing, as in an archive that is not unpacked to its end, or is a folder.
    """
    rows = np.unique(np.linspace(0, len(data) - 1, LOOKED_UP).astype(int)) if len(data) else np.zeros(0, dtype=int)
    missing = [path for path in map(data.path, rows) if not Path(path).is_file()]
    if missing:
        if "\\" in missing[0] and os.sep == "/":
            source = f"Paths need / where they have \\. {source}"
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
