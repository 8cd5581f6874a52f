"""Pairs two sets of embeddings by image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_recall.batch import IGNORED_LABEL
from lightning_recall.embedding_sets import EmbeddingSet

COLUMNS: dict[str, tuple[str, Any]] = {
    "labels": ("label", None),
    "paths": ("path", None),
    "is_query": ("is_query", True),
    "is_gallery": ("is_gallery", True),
    "groups": ("group", None),
}
"""field of `EmbeddingSet` that must be the same in both sets -> its name in messages, and what a missing field means"""


def pair_sets(first: EmbeddingSet, second: EmbeddingSet) -> tuple[EmbeddingSet, EmbeddingSet]:
    """Both sets with the same labelled images in the same order, that of the first set.

    Images are the same if their paths are, or their ids, if a set has no paths or repeats one. Images that the scores
    ignore, such as unreadable files, are dropped.

    Raises:
        ValueError: if a set has no labels, both are the same folder, or images, labels, roles or groups differ.
    """
    for embeddings in (first, second):
        if embeddings.labels is None:
            raise ValueError(
                f"{embeddings.path} has no labels: embed a data set with labels, or add an array `labels`."
            )
    if first.path.resolve() == second.path.resolve():
        raise ValueError(f"{first.path} was given twice: give the embeddings of two models.")
    names, other_names = _names(first, second)
    position = {name: index for index, name in enumerate(other_names)}
    _check_same_images(first, second, names, other_names)
    second = select(second, torch.tensor([position[name] for name in names]))
    _check_same_columns(first, second)
    assert first.labels is not None  # checked above
    labelled = (first.labels != IGNORED_LABEL).nonzero().squeeze(1)
    return select(first, labelled), select(second, labelled)


def select(embeddings: EmbeddingSet, items: Tensor) -> EmbeddingSet:
    """The given items (n,) of a set."""
    columns: dict[str, Any] = {
        name: values[items] if isinstance(values, Tensor) else [values[item] for item in items.tolist()]
        for name, values in embeddings._asdict().items()
        if isinstance(values, Tensor | list)
    }
    return embeddings._replace(**columns)


def item_name(embeddings: EmbeddingSet, item: int) -> str:
    """Path of an item, or "item ID" if it is not known."""
    return embeddings.paths[item] if embeddings.paths is not None else f"item {int(embeddings.ids[item])}"


def _names(first: EmbeddingSet, second: EmbeddingSet) -> tuple[Sequence[str | int], Sequence[str | int]]:
    """What the images of both sets are paired by."""
    if all(each.paths is not None and len(set(each.paths)) == len(each.paths) for each in (first, second)):
        return first.paths or [], second.paths or []
    return first.ids.tolist(), second.ids.tolist()


def _check_same_images(
    first: EmbeddingSet, second: EmbeddingSet, names: Sequence[str | int], other_names: Sequence[str | int]
) -> None:
    """Raises ValueError if an image is only in one set."""
    known, other_known = set(names), set(other_names)
    only_first = [name for name in names if name not in other_known]
    only_second = [name for name in other_names if name not in known]
    if only_first or only_second:
        name, path = (only_first[0], first.path) if only_first else (only_second[0], second.path)
        name = f"item {name}" if isinstance(name, int) else repr(name)
        raise ValueError(
            f"Only embeddings of the same images can be compared: {first.path} has {len(names):,} and {second.path} "
            f"{len(other_names):,} images, {len(known & other_known):,} of them in both, and {name} is only in {path}."
        )


def _check_same_columns(first: EmbeddingSet, second: EmbeddingSet) -> None:
    """Raises ValueError if an image has another label, role, group or path in the other set."""
    for field, (column, default) in COLUMNS.items():
        values, other_values = _column(first, field, default), _column(second, field, default)
        if field == "paths" and (first.paths is None or second.paths is None):
            continue
        differing = [item for item, pair in enumerate(zip(values, other_values, strict=True)) if pair[0] != pair[1]]
        if differing:
            item = differing[0]
            raise ValueError(
                f"{item_name(first, item)!r} has {column} {values[item]!r} in {first.path}, but {other_values[item]!r} "
                f"in {second.path} ({len(differing):,} of {len(values):,} images differ): embed the same data with "
                "both models."
            )


def _column(embeddings: EmbeddingSet, field: str, default: Any) -> list[Any]:
    """The values (N,) of a field; `default` for each item if it is not known."""
    values = getattr(embeddings, field)
    if values is None:
        return [default] * len(embeddings.ids)
    return values.tolist() if isinstance(values, Tensor) else list(values)
