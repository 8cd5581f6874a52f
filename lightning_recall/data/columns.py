"""Selects a subset of a data set and of its per-item attributes."""

import copy
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Data = TypeVar("Data", bound=Any)


def select_items(data: Data, indices: Any) -> Data:
    """A copy with a subset of the items, by mask (N,) or indices (M,).

    Args:
        data: a data set with `columns`, the names of the attributes that have an entry for each item; names that are
            missing or None are skipped.
        indices: (N,) bool, (M,) integers or a slice.

    Raises:
        ValueError: for a column of wrong length, an attribute of length N that is not in `columns`, or a
            `ground_truth`, whose indices would be invalid.
    """
    kind, count, values = type(data).__name__, len(data), vars(data)
    if values.get("ground_truth") is not None:
        raise ValueError(f"{kind} has a ground_truth of gallery indices, so no subset of it can be selected.")
    chosen = copy.copy(data)
    for name, column in values.items():
        is_column = name in data.columns and column is not None
        if is_column and len(column) != count:
            raise ValueError(f"{kind}.{name} has {len(column):,} entries, but the data set has {count:,} images.")
        if is_column:
            setattr(chosen, name, select_entries(column, indices))
        elif isinstance(column, (np.ndarray, Tensor, list)) and np.ndim(column) and len(column) == count:
            raise ValueError(
                f"{kind}.{name} has {count:,} entries, one per image, but is not in {kind}.columns. Add {name!r} to "
                "`columns`, or make it a tuple if it is not per image."
            )
    return chosen


def select_entries(column: Any, indices: Any) -> Any:
    """Selects entries of a column (N, ...); tensors stay tensors, everything else becomes an array."""
    array = np.asarray(column)[np.asarray(indices) if isinstance(indices, Tensor) else indices]
    return torch.from_numpy(np.ascontiguousarray(array)) if isinstance(column, Tensor) else array
