"""Rows of a data set of which each attribute has one entry for each image."""

import copy
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Data = TypeVar("Data", bound=Any)


def select_rows(data: Data, rows: Any) -> Data:
    """A copy of a data set with some of its rows, by a mask (N,) or by their numbers.

    Args:
        data: with `columns`, the names of the attributes that have an entry for each row; those it lacks, or that are
            None, do not matter.
        rows: (N,) bool, (M,) integers or a slice.

    Raises:
        ValueError: if a column has another length than the data set, another attribute looks like a column, or there
            is a `ground_truth`, which holds numbers of rows.
    """
    kind, count, values = type(data).__name__, len(data), vars(data)
    if values.get("ground_truth") is not None:
        raise ValueError(f"The ground truth of {kind} holds row numbers: it cannot be cut into parts.")
    chosen = copy.copy(data)
    for name, column in values.items():
        listed = name in data.columns and column is not None
        if listed and len(column) != count:
            raise ValueError(f"{kind}.{name} has {len(column):,} entries, but the data set {count:,} images.")
        if listed:
            setattr(chosen, name, entries(column, rows))
        elif isinstance(column, (np.ndarray, Tensor, list)) and np.ndim(column) and len(column) == count:
            raise ValueError(
                f"{kind}.{name} has {count:,} entries, as many as there are images, but is not in {kind}.columns, so "
                f"that it is not known which of them belong to a part of the images. Add {name!r} to `columns`; if it "
                "has no entry for each image, make it a tuple."
            )
    return chosen


def entries(column: Any, rows: Any) -> Any:
    """Some entries of a column (N, ...), a tensor where it is one and an array elsewhere."""
    array = np.asarray(column)[np.asarray(rows) if isinstance(rows, Tensor) else rows]
    return torch.from_numpy(np.ascontiguousarray(array)) if isinstance(column, Tensor) else array
