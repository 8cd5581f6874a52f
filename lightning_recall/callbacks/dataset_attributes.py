"""What a data set says of its rows, also through `Subset` and `ConcatDataset`."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

ROLES = ("is_query", "is_gallery", "groups")


def attribute_of(dataset: Any, name: str) -> Any:
    """Values (N,) of an attribute, such as `paths`, for the rows of a data set; None if it has none.

    A `Subset` (`random_split` makes them) has those of its rows, a `ConcatDataset` those of its parts.

    Raises:
        ValueError: for roles that only some parts of a `ConcatDataset` have, and for the ground truth of a part or a
            combination of data sets, whose row numbers it holds.
    """
    values = getattr(dataset, name, None)
    if values is None and isinstance(dataset, Subset):
        whole = attribute_of(dataset.dataset, name)
        values = None if whole is None else np.asarray(whole)[np.asarray(dataset.indices, dtype=np.int64)]
    elif values is None and isinstance(dataset, ConcatDataset):
        parts = [attribute_of(part, name) for part in dataset.datasets]
        missing = [number for number, part in enumerate(parts) if part is None]
        if missing and len(missing) < len(parts) and name in ROLES:
            raise ValueError(
                f"Only some of the {len(parts)} data sets in a ConcatDataset have {name}, number {missing[0]} has not: "
                "give all of them one, or none."
            )
        values = None if missing else np.concatenate([np.asarray(part) for part in parts])
    return values


def ground_truth_of(dataset: Any) -> Any:
    """The `ground_truth` of a data set; None if it has none.

    Raises:
        ValueError: if a part of this data set has one: the row numbers in it are others here.
    """
    truth = getattr(dataset, "ground_truth", None)
    if truth is None and any(getattr(leaf, "ground_truth", None) is not None for leaf in leaves(dataset)):
        raise ValueError(
            f"The ground truth of a data set holds row numbers, which a {type(dataset).__name__} changes: "
            "evaluate the whole data set by itself."
        )
    return truth


def leaves(dataset: Any) -> list[Any]:
    """The data sets that a nest of `Subset` and `ConcatDataset` is made of."""
    if isinstance(dataset, Subset):
        return leaves(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [leaf for part in dataset.datasets for leaf in leaves(part)]
    return [dataset]


def roles_of(dataset: Any) -> dict[str, Tensor]:
    """Which rows (N,) are queries, which are searched, and in which group each is, as far as a data set says so.

    Raises:
        ValueError: if it does not say so for each of its rows.
    """
    found = {name: attribute_of(dataset, name) for name in ROLES}
    roles = {name: torch.as_tensor(values) for name, values in found.items() if values is not None}
    for name, values in roles.items():
        if len(values) != len(dataset):
            raise ValueError(f"{name} has {len(values)} entries, but the data set {len(dataset)} items.")
    return roles
