"""Names that a person reads: of classes and files of a data set."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from lightning_recall._lightning import rank_zero_warn
from lightning_recall.data.attributes import attribute_of, labels_of, roles_of
from lightning_recall.search.result import SearchResult


def class_names_of(dataset: Any) -> tuple[str, ...] | None:
    """Name of each label: the attribute `class_names`, or `classes` of torchvision's data sets; None if not known.

    A `Subset` has those of its data set. A `ConcatDataset` has those of its parts, if they are all the same.
    """
    for attribute in ("class_names", "classes"):
        names = getattr(dataset, attribute, None)
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return tuple(names) or None
    if isinstance(dataset, Subset):
        return class_names_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        first, *others = map(class_names_of, dataset.datasets)
        return first if all(names == first for names in others) else None
    return None


def class_name(names: Sequence[str] | None, label: int) -> str:
    """Name of a label; "" if it is not known."""
    return names[label] if names is not None and 0 <= label < len(names) else ""


def paths_of(dataset: Any, indices: Iterable[int]) -> list[str] | None:
    """Path of each item: the attribute `paths`, or the `samples` of torchvision's data sets; None if not known."""
    paths = attribute_of(dataset, "paths")
    if paths is None or len(paths) != len(dataset) or not isinstance(next(iter(paths), ""), str | bytes):
        paths = paths_of_samples(dataset)
    return None if paths is None else [os.fsdecode(paths[int(index)]) for index in indices]


def paths_of_samples(dataset: Any) -> list[str] | None:
    """Paths of a torchvision data set, whose `samples` are (path, label), also through `Subset`; None of others."""
    if isinstance(dataset, Subset):
        paths = paths_of_samples(dataset.dataset)
        return None if paths is None else [paths[index] for index in dataset.indices]
    samples: Any = getattr(dataset, "samples", None)
    if not isinstance(samples, list) or not all(isinstance(sample, tuple) for sample in samples[:1]):
        return None
    paths = [sample[0] for sample in samples]
    return paths if paths and isinstance(paths[0], str) else None


def write_items(dataset: Any, path: Path) -> None:
    """Writes a CSV file that says what each index of a data set is: id, path, label, class and role, those known.

    The roles are is_query and is_gallery, 0 or 1, and group, such as the camera. Does nothing for a data set without
    paths, class names and roles. An existing file is replaced.
    """
    labels, names, roles = labels_of(dataset), class_names_of(dataset), known_roles(dataset)
    size = len(dataset) if hasattr(dataset, "__len__") else 0
    paths = paths_of(dataset, range(size))
    if size == 0 or not (paths or roles or (names and labels is not None)):
        return
    columns: dict[str, Iterable[Any]] = {"id": range(size)}
    if paths is not None:
        columns["path"] = paths
    if labels is not None and labels.ndim == 1:
        columns["label"] = labels.tolist()
        if names is not None:
            columns["class"] = [class_name(names, label) for label in labels.tolist()]
    columns |= {"group" if name == "groups" else name: values.long().tolist() for name, values in roles.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def known_roles(dataset: Any) -> dict[str, Tensor]:
    """`is_query`, `is_gallery` and `groups` (N,) of a data set; empty, with a warning, if a wrapper hides them."""
    try:
        return roles_of(dataset)
    except ValueError as error:
        rank_zero_warn(f"items.csv does not say which images are queries and gallery: {error}")
        return {}


def item_classes(result: SearchResult, dataset: Any, items: Iterable[int]) -> dict[int, str]:
    """Class name of some items of a search, or "" if it is not known; empty if the data set has no names."""
    names = class_names_of(dataset)
    if names is None or result.labels is None:
        return {}
    labels: Tensor = result.labels.cpu()
    return {item: class_name(names, int(labels[item])) for item in items}


def item_files(result: SearchResult, dataset: Any, items: Sequence[int]) -> dict[int, str]:
    """Path of some items of a search; empty if they are not known."""
    if result.indices is None:
        return {}
    indices = result.indices.cpu()
    paths = paths_of(dataset, [int(indices[item]) for item in items])
    return {} if paths is None else dict(zip(items, paths, strict=True))
