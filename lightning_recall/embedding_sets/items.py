"""`items.csv` beside embeddings: path, class and role of each item."""

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TEXTS = {"path": "paths", "class": "classes"}
"""column -> field of `EmbeddingSet`, a list of strings"""

ROLES = {
    "is_query": ("is_query", torch.bool),
    "is_gallery": ("is_gallery", torch.bool),
    "group": ("groups", torch.int64),
}
"""column of integers -> field of `EmbeddingSet` and its dtype"""


def read_items(file: Path, ids: Tensor) -> dict[str, Any]:
    """The columns of a file for the given ids (N,), as fields of `EmbeddingSet`; missing columns are omitted.

    Raises:
        ValueError: if the file cannot be read, or lacks an id.
    """
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            rows = {int(row["id"]): row for row in csv.DictReader(opened)}
        found = [rows[number] for number in ids.tolist()]
        fields: dict[str, Any] = {
            field: [row[name] for row in found] for name, field in TEXTS.items() if name in found[0]
        }
        for name, (field, dtype) in ROLES.items():
            if name in found[0]:
                fields[field] = torch.tensor([int(row[name]) for row in found]).to(dtype)
    except KeyError as error:
        raise ValueError(f"{file} does not belong to the embeddings beside it: it has no row for {error}.") from error
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(
            f"{file} is damaged: run predict again, or delete it to go without names. ({error})"
        ) from error
    return fields
