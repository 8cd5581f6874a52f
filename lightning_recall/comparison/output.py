"""Writes a comparison: a page and two tables."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_recall.comparison.compare import Comparison, class_names
from lightning_recall.comparison.page import page
from lightning_recall.comparison.pairing import item_name

FILES = ("compare.html", "classes.csv", "queries.csv")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""what a text that a spreadsheet may run as a formula starts with"""


def write_comparison(comparison: Comparison, folder: str | Path, images: str | Path | None = None) -> list[Path]:
    """Writes compare.html, classes.csv and queries.csv; existing files are not overwritten.

    In the tables, an apostrophe precedes names of files and classes that a spreadsheet could run as a formula, such as
    those that start with "=".

    Args:
        comparison: result of `compare`.
        folder: where to write; created if it does not exist.
        images: folder of the image files, to which the paths are relative; None: that of the embeddings, if known.

    Raises:
        ValueError: if one of the files exists.

    Returns:
        The paths of the three files.
    """
    paths = new_paths(folder)
    text = page(comparison, None if images is None else Path(images).expanduser())
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    with paths[0].open("x", encoding="utf-8", errors="replace") as file:  # names may hold bytes that are no UTF-8
        file.write(text)
    write_table(paths[1], class_rows(comparison))
    write_table(paths[2], query_rows(comparison))
    return paths


def new_paths(folder: str | Path) -> list[Path]:
    """The paths of the files in a folder; raises ValueError if one exists."""
    paths = [Path(folder).expanduser() / name for name in FILES]
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ValueError(f"{path} exists already, and is not overwritten: choose another folder.")
    return paths


def write_table(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file; floats get 6 significant digits."""
    with path.open("x", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([cell(value) for value in row] for row in rows)


def cell(value: Any) -> Any:
    """A value as it is written to a table; a text that could be a formula gets an apostrophe.

    >>> cell("=1+1"), cell("bird.jpg"), cell(-0.123456789)
    ("'=1+1", 'bird.jpg', '-0.123457')
    """
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def class_rows(comparison: Comparison) -> Iterable[list[Any]]:
    """A heading, and a row for each class, the smallest difference first."""
    scores = [f"{name} {model}" for name in comparison.scores for model in "AB"]
    yield ["label", "class", "queries", *scores, "right only in A", "right only in B"]
    for each in comparison.classes:
        values = [part[name] for name in comparison.scores for part in (each.first, each.second)]
        yield [each.label, each.name, each.num_queries, *values, each.lost, each.gained]


def query_rows(comparison: Comparison) -> Iterable[list[Any]]:
    """A heading, and a row for each query; of changed queries also what the model that is wrong retrieves first."""
    first, changes = comparison.first, comparison.changes
    assert first.labels is not None  # `compare` checks it
    names = class_names(first) or class_names(comparison.second)
    scores = [f"{name} {model}" for name in comparison.scores for model in "AB"]
    yield ["id", "path", "label", "class", "first_rank A", "first_rank B", *scores, "right only in", "wrong neighbor"]
    changed = {
        query: ("B" if gained else "A", item_name(first, wrong))
        for query, gained, wrong in zip(
            changes.queries.tolist(), changes.gained.tolist(), changes.wrong.tolist(), strict=True
        )
    }
    ranks = [result.first_ranks.tolist() for result in comparison.results]
    columns = [result.scores[name].tolist() for name in comparison.scores for result in comparison.results]
    for row, query in enumerate(comparison.results[0].queries.tolist()):
        label = int(first.labels[query])
        path = first.paths[query] if first.paths is not None else ""
        values = [column[row] for column in (*ranks, *columns)]
        yield [int(first.ids[query]), path, label, names.get(label, ""), *values, *changed.get(query, ("", ""))]
