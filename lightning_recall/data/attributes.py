"""What a data set says of its rows, also through `Subset` and `ConcatDataset`."""

from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

MAX_WRAPPED = 1_000  # entries of a list that may be data sets; a list of all files may have millions
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


def labels_of(dataset: Any) -> Tensor | None:
    """Labels (N,), integers, that a data set knows without loading an item; None if it knows none.

    They are `labels`, `targets` (torchvision) or the last tensor of a `TensorDataset`.
    """
    for name in ("labels", "targets", "tensors"):
        with suppress(TypeError, ValueError, RuntimeError, IndexError):  # of these names, but something else
            values = torch.as_tensor(
                np.asarray(rows_of_tensors(dataset) if name == "tensors" else attribute_of(dataset, name))
            )
            is_integer = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
            if is_integer and values.shape == (len(dataset),):
                return values.long()
    return None


def rows_of_tensors(dataset: Any) -> Any:
    """The last tensor (N, ...) of a TensorDataset, also through Subset and ConcatDataset; None if there is none."""
    if isinstance(dataset, Subset):
        whole = rows_of_tensors(dataset.dataset)
        return None if whole is None else np.asarray(whole)[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([np.asarray(rows_of_tensors(part)) for part in dataset.datasets])
    return dataset.tensors[-1] if isinstance(dataset, TensorDataset) and dataset.tensors else None


def check_wrapped(dataset: Any) -> None:
    """Refuses a wrapper of one's own around a data set with roles or a ground truth: which are its rows is not known.

    A wrapper that has the attribute itself, even None, says what its rows are.

    Raises:
        ValueError: in that case.
    """
    names = (*ROLES, "ground_truth")
    for leaf in leaves(dataset):
        found = wrapped_role(leaf, names, set())
        if found:
            attribute, role = found
            raise ValueError(
                f"{type(leaf).__name__} has no {role}, but the data set in its attribute {attribute} has: give "
                f"{type(leaf).__name__} an attribute {role} with a value for each of its own items, or {role} = None "
                "if it shall not have it."
            )


def wrapped_role(leaf: Any, names: tuple[str, ...], seen: set[int]) -> tuple[str, str] | None:
    """The attribute of a data set that holds one with a role that it has not, and this role; None if there is none."""
    names = tuple(name for name in names if not hasattr(leaf, name))
    if id(leaf) in seen:
        return None
    seen.add(id(leaf))
    for attribute, value in getattr(leaf, "__dict__", {}).items():
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        held = [part for part in islice(parts, MAX_WRAPPED) if is_dataset(part)]
        for inner in [inner for part in held for inner in leaves(part)]:
            role = next((name for name in names if getattr(inner, name, None) is not None), None)
            deeper = None if role else wrapped_role(inner, names, seen)
            if role or deeper:
                return (attribute, role) if role else (f"{attribute}.{deeper[0]}", deeper[1])  # type: ignore[index]  # without a role, deeper is a pair
    return None


def is_dataset(value: Any) -> bool:
    """Whether a value may be a data set: it has items and attributes, and is no array."""
    has_items = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return has_items and hasattr(value, "__dict__") and not isinstance(value, Tensor | np.ndarray | type)


def roles_of(dataset: Any) -> dict[str, Tensor]:
    """Which rows (N,) are queries, which are searched, and in which group each is, as far as a data set says so.

    Raises:
        ValueError: if it does not say so for each of its rows, or only a data set that it wraps says so.
    """
    check_wrapped(dataset)
    found = {name: attribute_of(dataset, name) for name in ROLES}
    roles = {name: torch.as_tensor(values) for name, values in found.items() if values is not None}
    for name, values in roles.items():
        if len(values) != len(dataset):
            raise ValueError(f"{name} has {len(values)} entries, but the data set {len(dataset)} items.")
    return roles
