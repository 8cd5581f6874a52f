"""Scores of each query and of each class, as CSV files."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from lightning_recall.callbacks.output import free_paths
from lightning_recall.data.attributes import attribute_of
from lightning_recall.search.result import SearchResult


def write_tables(searched: SearchResult, dataset: Any, prefix: Path) -> Path:
    """Writes PREFIX_queries.csv and, where labels tell the classes, PREFIX_classes.csv; beside those that exist.

    A query's row has its place in the data set and, where the data set knows `paths` (N,), its file; its label; the
    rank of the first relevant item; and each score. A class's row has its label, its number of queries and their means.

    Returns:
        The path of the first.
    """
    scores = {name: values.cpu().numpy() for name, values in searched.scores.items()}
    queries = searched.queries.cpu()
    columns: dict[str, Any] = {}
    if searched.indices is not None:
        columns["index"] = searched.indices.cpu()[queries].numpy()
        paths = attribute_of(dataset, "paths")
        if paths is not None:
            columns["path"] = [os.fsdecode(paths[index]) for index in columns["index"]]
    if searched.labels is not None:
        columns["label"] = labels = searched.labels.cpu()[queries].numpy()
    columns |= {"first_rank": searched.first_ranks.cpu().numpy(), **scores}
    kinds = ("queries", "classes")
    path, of_classes = free_paths(*(prefix.with_name(f"{prefix.name}_{kind}.csv") for kind in kinds))
    write(path, columns)
    if searched.labels is not None:
        classes, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
        means = {name: np.bincount(place, weights=values) / counts for name, values in scores.items()}
        write(of_classes, {"label": classes, "queries": counts, **means})
    return path


def write(path: Path, columns: dict[str, Any]) -> None:
    """Writes columns of equal length under their names; numbers to 6 digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow([f"{value:.6g}" if isinstance(value, np.floating) else value for value in row])
