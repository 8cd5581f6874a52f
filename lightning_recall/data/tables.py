"""Reads the lists that data sets come with, and says what is wrong with them."""

import csv
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from lightning_recall.data.image_files import ImageFiles
from lightning_recall.data.messages import counted, quote, short

LOOKED_UP = 200  # files of a data set whose existence is checked
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}

LONGEST_PATH, LONGEST_NAME = 4096, 255  # bytes that file systems take


def user_path(path: str | Path) -> Path:
    """A path that a user gives; ~ is the home folder."""
    return Path(os.path.expanduser(path))


def require_path(path: Path, source: str) -> Path:
    """A file or folder of a data set.

    Args:
        path: where it should be.
        source: where the data set comes from and how it is unpacked, for the error.

    Raises:
        ValueError: if it is not there.
    """
    if not os.path.exists(path):  # False for a name that is too long, too
        parent = next(parent for parent in path.parents if os.path.exists(parent))
        raise ValueError(f"{short(path, 100)} is not there (but {short(parent, 100)} is). {source}")
    return path


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file to read.

    Raises:
        ValueError: if it is none, or cannot be opened; it names the file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{short(path)} cannot be read as UTF-8 text ({error}): save it as such.") from error
    except OSError as error:
        raise ValueError(f"{short(path)} cannot be read: {error.strerror}.") from error


def cells(path: Path, delimiter: str | None, skip: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Numbers from 1 and cells of the lines that are not empty.

    Raises:
        ValueError: for a quote that its cell does not close, NUL characters, or text that is not UTF-8.
    """
    with open_text(path) as file:
        for number, line in enumerate(islice(file, skip, None), skip + 1):
            if "\0" in line:
                raise ValueError(f"{short(path)}, line {number}: it has NUL characters. Save the file as UTF-8 text.")
            if delimiter is None or delimiter == "\n":
                row = line.split(delimiter)
            else:
                try:  # one line at a time: an open quote would swallow those that follow
                    row = next(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True), [])
                except csv.Error as error:
                    raise ValueError(
                        f'{short(path)}, line {number}: a quote (") is not closed in its line, or text follows it '
                        f"({error}): {quote(line.strip())}."
                    ) from error
                check_quotes(path, number, line, row)
            if "".join(row).strip():
                yield number, [cell.strip() for cell in row]


def check_quotes(path: Path, number: int, line: str, row: list[str]) -> None:
    """Raises ValueError for a cell with an odd number of quotes, such as `dog"`; it may have them in quotes, doubled.

    Args:
        path: of the table.
        number: of the line.
        line: its text.
        row: its cells, as they are read.
    """
    for cell in row if '"' in line else ():
        doubled = cell.replace('"', '""')
        if cell.count('"') % 2 and f'"{doubled}"' not in line:
            raise ValueError(
                f'{short(path)}, line {number}: the cell {quote(cell)} has a quote (") without its pair. Remove it; a '
                'cell with such a quote is written in quotes, with "" for each quote in it.'
            )


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
                f"{short(path)}, line {number}: {counted(len(row), 'cell')} where {len(names)} are needed: "
                f"{quote(' '.join(row))}."
            )
        for values, place, name in zip(table, places, columns, strict=True):
            if not row[place]:
                raise ValueError(f"{short(path)}, line {number}: the {name} is empty.")
            if name == "path" and len(row[place]) > LONGEST_NAME // 4:
                check_length(path, number, row[place])
            values.append(row[place])
    if not table[0]:
        raise ValueError(f"{short(path)} lists nothing.")
    return table


def check_length(path: Path, number: int, cell: str) -> None:
    """Raises ValueError for the path of an image, in a line of a table, that no file system takes."""
    longest = max(len(os.fsencode(name)) for name in cell.split("/"))
    if longest > LONGEST_NAME or len(os.fsencode(cell)) > LONGEST_PATH:
        raise ValueError(
            f"{short(path)}, line {number}: the path {quote(cell)} has {len(cell):,} characters. No file system takes "
            f"more than {LONGEST_PATH:,} bytes, and {LONGEST_NAME} between two /."
        )


def place_of(path: Path, column: str, names: list[str], delimiter: str | None) -> int:
    """Number of a column.

    Raises:
        ValueError: if no column is called so, or several are.
    """
    if names.count(column) == 1:
        return names.index(column)
    known = f"its first line names {quote(', '.join(names))}."
    if column in names:
        raise ValueError(f"{short(path)} has several columns {column!r}: {known}")
    used = next((name for mark, name in DELIMITERS.items() if mark != delimiter and mark in "".join(names)), None)
    if used and delimiter:
        known += f" {used.capitalize()} separate its cells: save it with {DELIMITERS[delimiter]}."
    raise ValueError(f"{short(path)} has no column {column!r}: {known}")


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
        raise ValueError(
            f"{short(path)}: {column} must be an integer of at most 18 digits, got {quote(wrong)}."
        ) from None


def check_files(data: ImageFiles, source: str) -> None:
    """Looks some files up, spread over the list.

    Raises:
        ValueError: if one is missing, as in an archive that is not unpacked to its end, or is a folder.
    """
    rows = np.unique(np.linspace(0, len(data) - 1, LOOKED_UP).astype(int)) if len(data) else np.zeros(0, dtype=int)
    missing = [path for path in map(data.path, rows) if not os.path.isfile(path)]
    if not missing:
        return
    if "\\" in missing[0] and os.sep == "/":
        source = f"Paths need / where they have \\. {source}"
    looked_up = f"{len(missing)} of {counted(len(rows), 'file')} that {'were' if len(rows) > 1 else 'was'} looked up"
    verb = "is" if len(missing) == 1 else "are"
    if os.path.isdir(missing[0]):
        raise ValueError(f"{looked_up} {verb} no file: {short(missing[0])} is a folder. {source}")
    raise ValueError(f"{looked_up} {verb} not there, such as {short(missing[0])}. {source}")


def check_counts(file: Path, data: Any, images: int, classes: int) -> None:
    """Warns where a list has not as many images and classes as the published one."""
    found = len(data), len(np.unique(data.labels))
    if found != (images, classes):
        listed = f"{counted(found[0], 'image')} of {counted(found[1], 'class', 'classes')}"
        warnings.warn(
            f"{short(file)} lists {listed}, where the published split has {images:,} of {classes:,}: results cannot be "
            "compared with published ones.",
            stacklevel=3,
        )


def encode_labels(*names: Sequence[str]) -> list[NDArray[np.int64]]:
    """Labels from 0 in place of names, the same for the same name in all lists."""
    known, labels = np.unique(np.concatenate([np.asarray(part, dtype=object) for part in names]), return_inverse=True)
    assert len(known)  # read_columns refuses empty lists
    return np.split(labels.astype(np.int64).ravel(), np.cumsum([len(part) for part in names])[:-1])
