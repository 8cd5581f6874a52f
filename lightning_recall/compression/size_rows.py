"""Rows of the table of `size_table`, and their CSV file."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class SizeRow(NamedTuple):
    """One way to store embeddings.

    method: how they are stored, with the settings; `family`: methods of one kind.
    dim: dimensions that are kept.
    bytes_per_image: bytes that each gallery item takes, with ids and links of an index.
    shared_bytes: bytes that are kept once: components, scales, centroids.
    scores: {"recall@1": in [0, 1], ..., "map@r": ...}; mAP@R is NaN if it was not measured.
    num_queries: queries that were scored.
    build_seconds: seconds to fit, encode and index the gallery.
    search_ms: milliseconds a query, of a batch of queries that are already encoded.
    engine: what searched while the time was taken: "torch", "faiss", or "faiss, torch" with rescoring.
    """

    method: str
    family: str
    dim: int
    bytes_per_image: float
    shared_bytes: int
    scores: dict[str, float]
    num_queries: int
    build_seconds: float
    search_ms: float
    engine: str


def write_size_csv(rows: Sequence[SizeRow], file: str | Path) -> None:
    """Writes rows to a new CSV file: a column for each field and each score, scores in [0, 1].

    Raises:
        FileExistsError: if there is such a file.
    """
    with Path(file).open("x", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow([*SizeRow._fields[:5], *rows[0].scores, *SizeRow._fields[6:]])
        for row in rows:
            scores = ["" if math.isnan(value) else value for value in row.scores.values()]
            sizes = row.dim, row.bytes_per_image, row.shared_bytes
            writer.writerow([row.method, row.family, *sizes, *scores, *row[6:]])
