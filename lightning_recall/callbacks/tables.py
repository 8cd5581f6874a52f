"""Scores of each query and of each class, as CSV files."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from lightning_recall.callbacks.item_names import class_name, class_names_of, paths_of
from lightning_recall.callbacks.output import unused_paths
from lightning_recall.search.result import SearchResult


def write_tables(result: SearchResult, dataset: Any, prefix: Path) -> Path:
    """Writes PREFIX_queries.csv and, if there are class labels, PREFIX_classes.csv; existing files are not overwritten.

    Each query row has its data set index, path (if the data set has `paths` (N,)), label, class name (if it has
    `class_names`), rank of the first relevant item, and scores. Each class row has the label, the name, the number of
    queries and their mean scores.

    Returns:
        Path of PREFIX_queries.csv.
    """
    scores = {name: values.cpu().numpy() for name, values in result.scores.items()}
    queries = result.queries.cpu()
    columns: dict[str, Any] = {}
    if result.indices is not None:
        columns["index"] = result.indices.cpu()[queries].numpy()
        paths = paths_of(dataset, columns["index"])
        if paths is not None:
            columns["path"] = paths
    if result.labels is not None:
        columns["label"] = labels = result.labels.cpu()[queries].numpy()
        names = class_names_of(dataset)
        if names is not None:
            columns["class"] = [class_name(names, int(label)) for label in labels]
    columns |= {"first_rank": result.first_ranks.cpu().numpy(), **scores}
    tables = ("queries", "classes")
    path, path_of_classes = unused_paths(*(prefix.with_name(f"{prefix.name}_{table}.csv") for table in tables))
    _write(path, columns)
    if result.labels is not None:
        classes, class_index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        means = {name: np.bincount(class_index, weights=values) / counts for name, values in scores.items()}
        named = {} if names is None else {"class": [class_name(names, int(label)) for label in classes]}
        _write(path_of_classes, {"label": classes, **named, "queries": counts, **means})
    return path


def _write(path: Path, columns: dict[str, Any]) -> None:
    """Writes columns with a header; floats have 6 significant digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow([f"{value:.6g}" if isinstance(value, np.floating) else value for value in row])
