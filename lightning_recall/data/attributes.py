"""Reads optional attributes of data sets, also through `Subset` and `ConcatDataset`."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from lightning_recall.tensors import holds_integers

MAX_WRAPPED = 1_000  # maximum number of list entries that are searched for data sets
EVALUATION_ATTRIBUTES = ("is_query", "is_gallery", "groups")
"""per-item attributes that evaluation reads"""


class RetrievalDataset(Protocol):
    """A map-style data set of N items (image, label) whose labels are known without loading an image.

    `ImageFiles` and `ImagesInMemory` are such data sets. Data modules require the members declared here. The following
    attributes are optional (missing or None):

    - `super_labels`, (N,) integers: super-class of each item. The data module passes it to the sampler, which reads it
      if `super_classes` is set.
    - `is_query`, (N,) bool: whether an item is a query in evaluation. None: all are. `RetrievalEvaluation` reads it.
    - `is_gallery`, (N,) bool: whether an item can be retrieved. None: all can. `RetrievalEvaluation` reads it.
    - `groups`, (N,) integers, such as cameras: gallery items with the same label and group as the query are ignored.
      `RetrievalEvaluation` reads it.
    - `ground_truth`, one tuple (easy, hard, junk) of lists of gallery indices for each query, as in revisited Oxford:
      `RetrievalEvaluation` then computes mAP, and ignores the labels.
    - `paths`, (N,) str or bytes: file of each item. `EmbeddingWriter` and the tables of the results read it.
    - `class_names`, a tuple of str: name of each label. Messages use it.
    - `unreadable`, a tensor (N,) bool, in shared memory: True for files that could not be read. The data set sets it,
      and the data module reports it at the end.

    Attributes:
        labels: (N,) int64: class of each item. The data module splits classes by it, and passes it to the sampler.
    """

    labels: NDArray[np.int64]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Any]: ...

    def select(self, indices: Any, training: bool = False) -> Self:
        """A subset, by mask (N,) or indices (M,), with the transform for training or for evaluation."""


def attribute_of(dataset: Any, name: str) -> Any:
    """Values (N,) of an attribute with an entry for each item, such as `paths`; None if the data set lacks it.

    A `Subset`, as from `random_split`, returns the values of its indices; a `ConcatDataset` concatenates those of its
    parts.

    Raises:
        ValueError: for an attribute that evaluation reads, if only some parts of a `ConcatDataset` have it, or a data
            set does not have an entry for each of its items.
    """
    values = getattr(dataset, name, None)
    if values is not None and name in EVALUATION_ATTRIBUTES:
        check_entries(dataset, name, values)
    if values is None and isinstance(dataset, Subset):
        whole = attribute_of(dataset.dataset, name)
        values = None if whole is None else np.asarray(whole)[np.asarray(dataset.indices, dtype=np.int64)]
    elif values is None and isinstance(dataset, ConcatDataset):
        parts = [attribute_of(part, name) for part in dataset.datasets]
        missing = [number for number, part in enumerate(parts) if part is None]
        if missing and len(missing) < len(parts) and name in EVALUATION_ATTRIBUTES:
            raise ValueError(
                f"Only some of the {len(parts)} data sets in a ConcatDataset have {name}; number {missing[0]} lacks "
                f"it. Give {name} to all of them or to none."
            )
        values = None if missing else np.concatenate([np.asarray(part) for part in parts])
    return values


def check_entries(dataset: Any, name: str, values: Any) -> None:
    """Raises ValueError unless an attribute that evaluation reads has an integer or bool for each item."""
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    kinds, wanted = ("iu", "integers") if name == "groups" else ("b", "bool")
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise ValueError(
            f"{name} of {type(dataset).__name__} must be {wanted}, one for each item (N,), got {array.dtype} of shape "
            f"{array.shape}."
        )
    if len(array) != len(dataset):
        raise ValueError(
            f"{name} of {type(dataset).__name__} has {len(array)} entries, but the data set has {len(dataset)} items."
        )


def ground_truth_of(dataset: Any) -> Any:
    """The `ground_truth` of a data set; None if it has none.

    Raises:
        ValueError: if a data set inside a `Subset` or `ConcatDataset` has one, since its indices do not apply to the
            wrapper.
    """
    truth = getattr(dataset, "ground_truth", None)
    if truth is None and any(getattr(leaf, "ground_truth", None) is not None for leaf in leaves(dataset)):
        raise ValueError(
            f"The ground truth of a data set holds indices, which do not apply to a {type(dataset).__name__}: "
            "evaluate the data set without the wrapper."
        )
    return truth


def leaves(dataset: Any) -> list[Any]:
    """The innermost data sets of nested `Subset` and `ConcatDataset`."""
    if isinstance(dataset, Subset):
        return leaves(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return [leaf for part in dataset.datasets for leaf in leaves(part)]
    return [dataset]


def labels_of(dataset: Any) -> Tensor | None:
    """Integer labels (N,) that are available without loading items; None if there are none.

    They are `labels`, `targets` (torchvision) or the last tensor of a `TensorDataset`.
    """
    for name in ("labels", "targets", "tensors"):
        with suppress(TypeError, ValueError, RuntimeError, IndexError):  # the attribute exists but is not an array
            values = torch.as_tensor(
                np.asarray(last_tensor_of(dataset) if name == "tensors" else attribute_of(dataset, name))
            )
            if holds_integers(values) and values.shape == (len(dataset),):
                return values.long()
    return None


def last_tensor_of(dataset: Any) -> Any:
    """The last tensor (N, ...) of a TensorDataset, also through Subset and ConcatDataset; None if there is none."""
    if isinstance(dataset, Subset):
        whole = last_tensor_of(dataset.dataset)
        return None if whole is None else np.asarray(whole)[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([np.asarray(last_tensor_of(part)) for part in dataset.datasets])
    return dataset.tensors[-1] if isinstance(dataset, TensorDataset) and dataset.tensors else None


def check_wrapped(dataset: Any) -> None:
    """Raises an error if only a wrapped data set, not its wrapper, has an attribute that evaluation reads.

    The attributes are `is_query`, `is_gallery`, `groups` and `ground_truth`. They are read through `Subset` and
    `ConcatDataset`, but not through other wrappers, which may reorder items. Wrappers that define the attribute
    themselves, even as None, are accepted.

    Raises:
        ValueError: for such a wrapper.
    """
    names = (*EVALUATION_ATTRIBUTES, "ground_truth")
    for leaf in leaves(dataset):
        hidden = hidden_attribute(leaf, names, set())
        if hidden:
            attribute, name = hidden
            kind = type(leaf).__name__
            raise ValueError(
                f"{kind} does not define {name}, but its attribute {attribute} does. Define {name} on {kind}, for its "
                f"own items, or set {name} = None to ignore it."
            )


def hidden_attribute(dataset: Any, names: tuple[str, ...], seen: set[int]) -> tuple[str, str] | None:
    """Finds one of `names` that a wrapped data set has and its wrapper lacks.

    Args:
        dataset: a data set that may wrap others.
        names: attribute names.
        seen: ids of the data sets that have been checked.

    Returns:
        (attribute that holds the wrapped data set, name of the hidden attribute), or None if nothing is hidden.
    """
    names = tuple(name for name in names if not hasattr(dataset, name))
    if id(dataset) in seen:
        return None
    seen.add(id(dataset))
    for attribute, wrapped in wrapped_datasets(dataset):
        name = next((name for name in names if getattr(wrapped, name, None) is not None), None)
        if name:
            return attribute, name
        nested = hidden_attribute(wrapped, names, seen)
        if nested:
            return f"{attribute}.{nested[0]}", nested[1]
    return None


def wrapped_datasets(dataset: Any) -> Iterator[tuple[str, Any]]:
    """Yields (attribute name, data set) for data sets in attributes of `dataset`, directly or in a list or dict."""
    for name, value in getattr(dataset, "__dict__", {}).items():
        values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        for part in islice(values, MAX_WRAPPED):
            if is_dataset(part):
                yield from ((name, leaf) for leaf in leaves(part))


def is_dataset(value: Any) -> bool:
    """Whether a value looks like a data set: indexable, with attributes, and not an array."""
    has_items = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return has_items and hasattr(value, "__dict__") and not isinstance(value, Tensor | np.ndarray | type)


def roles_of(dataset: Any) -> dict[str, Tensor]:
    """`is_query`, `is_gallery` and `groups` (N,): those that the data set defines.

    Raises:
        ValueError: if one of them does not have N entries of the right type, or only a wrapped data set has it.
    """
    check_wrapped(dataset)
    found = {name: attribute_of(dataset, name) for name in EVALUATION_ATTRIBUTES}
    return {name: torch.as_tensor(values) for name, values in found.items() if values is not None}
