"""Reads and validates the text files that list the images of a data set."""

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
from lightning_recall.data.messages import pluralize, quote, shorten

MAX_CHECKED = 200  # number of files of a data set that are checked for existence
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}

LONGEST_PATH, LONGEST_NAME = 4096, 255  # maximum path and name length in bytes


def user_path(path: str | Path) -> Path:
    """A path from the user, with ~ expanded to the home folder."""
    return Path(os.path.expanduser(path))


def require_path(path: Path, source: str) -> Path:
    """Returns `path` if it exists.

    Args:
        path: a file or folder of a data set.
        source: where to download the data set and how to unpack it, for the error.

    Raises:
        ValueError: if it does not exist.
    """
    if not os.path.exists(path):  # also False for a name that is too long
        parent = next(parent for parent in Path(os.path.abspath(path)).parents if os.path.exists(parent))
        raise ValueError(
            f"{shorten(path, 100)} does not exist, but its parent folder {shorten(parent, 100)} does. {source}"
        )
    return path


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Opens a UTF-8 text file for reading.

    Raises:
        ValueError: if it is not UTF-8 or cannot be opened; the message names the file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{shorten(path)} is not UTF-8 text ({error}): save it as UTF-8.") from error
    except OSError as error:
        raise ValueError(f"{shorten(path)} cannot be read: {error.strerror}.") from error


def iterate_lines(path: Path, delimiter: str | None, skip: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number from 1, cells) of the lines that are not empty.

    Raises:
        ValueError: for an unclosed quote, NUL characters, or text that is not UTF-8.
    """
    with open_text(path) as file:
        for number, line in enumerate(islice(file, skip, None), skip + 1):
            if "\0" in line:
                raise ValueError(
                    f"{shorten(path)}, line {number}: the line has NUL characters. Save the file as UTF-8 text."
                )
            if delimiter is None or delimiter == "\n":
                row = line.split(delimiter)
            else:
                try:  # parse line by line, so that an unclosed quote does not consume the following lines
                    row = next(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True), [])
                except csv.Error as error:
                    raise ValueError(
                        f"{shorten(path)}, line {number}: a quoted cell is not closed on the same line, or is "
                        f"followed by text ({error}): {quote(line.strip())}."
                    ) from error
                check_quotes(path, number, line, row)
            if "".join(row).strip():
                yield number, [cell.strip() for cell in row]


def check_quotes(path: Path, number: int, line: str, row: list[str]) -> None:
    """Raises ValueError for an unbalanced quote in a cell, such as `dog"`, unless escaped as "".

    Args:
        path: path of the table.
        number: number of the line.
        line: text of the line.
        row: parsed cells of the line.
    """
    for cell in row if '"' in line else ():
        doubled = cell.replace('"', '""')
        if cell.count('"') % 2 and f'"{doubled}"' not in line:
            raise ValueError(
                f'{shorten(path)}, line {number}: unbalanced quote (") in the cell {quote(cell)}. Remove it, or '
                'put the cell in quotes and write "" for each quote in it.'
            )


def read_columns(
    path: Path, columns: Sequence[str], delimiter: str | None = None, header: bool = True, skip: int = 0
) -> list[list[str]]:
    """Reads columns of a text file as strings; empty lines and Windows line ends are ignored.

    Args:
        path: UTF-8 text.
        columns: names that the header must have, in upper or lower case; without a header, the names of all columns in
            order.
        delimiter: column separator; with ",", cells may be quoted. None: whitespace.
        header: whether the first line names the columns.
        skip: number of lines to skip at the start of the file.

    Raises:
        ValueError: for a missing or repeated column, a line with too few or too many cells, an empty cell, a file
            without lines, or text that is not UTF-8; the message names the file.
    """
    rows = iterate_lines(path, delimiter, skip)
    names = [name.lower() for name in next(rows, (0, list(columns)))[1]] if header else list(columns)
    indices = [column_index(path, name, names, delimiter) for name in columns]
    table: list[list[str]] = [[] for _ in columns]
    for number, row in rows:
        if len(row) <= max(indices) or (delimiter == "," and any(row[len(names) :])):
            raise ValueError(
                f"{shorten(path)}, line {number}: expected {pluralize(len(names), 'cell')}, got {len(row):,}: "
                f"{quote(' '.join(row))}."
            )
        for values, index, name in zip(table, indices, columns, strict=True):
            if not row[index]:
                raise ValueError(f"{shorten(path)}, line {number}: the {name} is empty.")
            if name == "path" and len(row[index]) > LONGEST_NAME // 4:
                check_length(path, number, row[index])
            values.append(row[index])
    if not table[0]:
        raise ValueError(f"{shorten(path)} has no data lines.")
    return table


def check_length(path: Path, number: int, cell: str) -> None:
    """Raises ValueError if an image path in a table is longer than file systems allow."""
    longest = max(len(os.fsencode(name)) for name in cell.split("/"))
    if longest > LONGEST_NAME or len(os.fsencode(cell)) > LONGEST_PATH:
        raise ValueError(
            f"{shorten(path)}, line {number}: the path {quote(cell)} has {len(cell):,} characters. File systems "
            f"allow at most {LONGEST_PATH:,} bytes, and at most {LONGEST_NAME} bytes per path component."
        )


def column_index(path: Path, column: str, names: list[str], delimiter: str | None) -> int:
    """Index of a column.

    Raises:
        ValueError: if no column or several have this name.
    """
    if names.count(column) == 1:
        return names.index(column)
    header_text = f"its first line names {quote(', '.join(names))}."
    if column in names:
        raise ValueError(f"{shorten(path)} has several columns {column!r}: {header_text}")
    used = next((name for mark, name in DELIMITERS.items() if mark != delimiter and mark in "".join(names)), None)
    if used and delimiter:
        header_text += f" The file seems to use {used}: save it with {DELIMITERS[delimiter]}."
    raise ValueError(f"{shorten(path)} has no column {column!r}: {header_text}")


def column_names(path: Path, delimiter: str) -> list[str]:
    """Column names in lower case, from the first line that is not empty."""
    return [name.lower() for name in next(iterate_lines(path, delimiter), (0, []))[1]]


def parse_integers(path: Path, column: str, values: Sequence[str]) -> NDArray[np.int64]:
    """Converts a column to integers.

    Raises:
        ValueError: if a value is not an integer; the message names the file.
    """
    try:
        return np.array(values, dtype=np.int64)
    except (ValueError, OverflowError):
        wrong = next(value for value in values if not re.fullmatch("-?[0-9]{1,18}", value))
        raise ValueError(
            f"{shorten(path)}: {column} must be an integer of at most 18 digits, got {quote(wrong)}."
        ) from None


def check_files(data: ImageFiles, source: str) -> None:
    """Checks that a sample of the files, spread over the list, exists.

    Raises:
        ValueError: if a file is missing or is a folder, for example because an archive was not unpacked completely.
    """
    indices = np.unique(np.linspace(0, len(data) - 1, MAX_CHECKED).astype(int)) if len(data) else np.zeros(0, dtype=int)
    missing = [path for path in map(data.path, indices) if not os.path.isfile(path)]
    if not missing:
        return
    if "\\" in missing[0] and os.sep == "/":
        source = f"Use / instead of \\ in paths. {source}"
    count = f"{len(missing)} of {pluralize(len(indices), 'checked file')}"
    if os.path.isdir(missing[0]):
        raise ValueError(f"{count} cannot be found: {shorten(missing[0])} is a folder. {source}")
    raise ValueError(f"{count} cannot be found, such as {shorten(missing[0])}. {source}")


def check_counts(file: Path, data: Any, images: int, classes: int) -> None:
    """Warns if the counts differ from the published split."""
    counts = len(data), len(np.unique(data.labels))
    if counts != (images, classes):
        listed = f"{pluralize(counts[0], 'image')} of {pluralize(counts[1], 'class', 'classes')}"
        warnings.warn(
            f"{shorten(file)} lists {listed}, but the published split has {images:,} images of {classes:,} classes: "
            "results cannot be compared with published ones.",
            stacklevel=3,
        )


def encode_labels(*names: Sequence[str]) -> list[NDArray[np.int64]]:
    """Encodes names as integer labels from 0, consistently across lists."""
    known, labels = np.unique(np.concatenate([np.asarray(part, dtype=object) for part in names]), return_inverse=True)
    assert len(known)  # read_columns rejects empty lists
    return np.split(labels.astype(np.int64).ravel(), np.cumsum([len(part) for part in names])[:-1])
