"""Metric states: embeddings and per-item columns (labels, indices, ...) collected until compute()."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn

from lightning_recall.checks import check_finite
from lightning_recall.search.embedding_blocks import BLOCK_SIZE, EmbeddingBlocks
from lightning_recall.search.inputs import FLOAT_DTYPES
from lightning_recall.search.relevant_ranks import LabelledEmbeddings

COLUMNS = {
    "labels": torch.int64,
    "indices": torch.int64,
    "groups": torch.int64,
    "is_query": torch.bool,
    "is_gallery": torch.bool,
}
"""name of a state -> its dtype"""


def add_states(metric: Metric) -> None:
    """Adds empty states for the embeddings and all columns."""
    for name in ("embeddings", *COLUMNS):
        metric.add_state(name, default=[], dist_reduce_fx="cat")


def check_same_columns(metric: Metric, columns: Mapping[str, Tensor | None]) -> None:
    """Raises ValueError unless optional tensors are passed to every `update` or to none.

    Args:
        metric: the metric with the tensors of earlier batches.
        columns: tensors of this batch.
    """
    is_first = len(metric.metric_state["labels"]) == 0
    for name, values in columns.items():
        if not is_first and (values is not None) != (len(getattr(metric, name)) > 0):
            raise ValueError(f"Pass {name} to every update() or to none.")


def append_batch(metric: Metric, embeddings: Tensor, **columns: Tensor | None) -> None:
    """Appends a copy of the batch to the states, on the embeddings' device; columns that are None are skipped.

    Copies, because embeddings may be a view into a larger tensor or may be overwritten.
    """
    states: dict[str, list[Tensor]] = {name: getattr(metric, name) for name in ("embeddings", *columns)}
    states["embeddings"].append(embeddings.detach().clone())
    for name, values in columns.items():
        if values is not None:
            states[name].append(values.detach().to(embeddings.device, COLUMNS[name], copy=True))


def check_updated(metric: Metric) -> None:
    """Raises ValueError if a metric has no states, because `update` was never called."""
    if len(metric.metric_state["embeddings"]) == 0:
        raise ValueError(f"{type(metric).__name__}.compute() was called before any item was added with update().")


def concatenated_states(metric: Metric, ignore_index: int | None = None) -> dict[str, Tensor]:
    """Concatenates the states and removes duplicates; columns that were never passed are omitted.

    Drops items labelled `ignore_index`. Sorts by index if indices were passed.

    Returns:
        {"embeddings": (N, D), "labels": (N,), ...}.

    Raises:
        ValueError: if `update` was never called, or the columns have different lengths.
    """
    check_updated(metric)
    names = ("embeddings", *COLUMNS)
    states = {name: dim_zero_cat(getattr(metric, name)) for name in names if len(getattr(metric, name)) > 0}
    for name, values in states.items():
        if len(values) != len(states["embeddings"]):
            raise ValueError(f"Pass {name} to every update() or to none.")
    if states["embeddings"].device.type == "mps":  # MPS does not support float64
        states = {name: values.cpu() for name, values in states.items()}
    if ignore_index is not None:
        is_kept = states["labels"] != ignore_index  # (N,)
        states = states if bool(is_kept.all()) else {name: values[is_kept] for name, values in states.items()}
    check_finite(states["embeddings"])
    return deduplicate(states) if "indices" in states else states


def labelled_embeddings(states: Mapping[str, Tensor], items: Tensor, normalize: bool) -> LabelledEmbeddings:
    """Selects items (n,) of concatenated states by index, without copying their embeddings."""
    groups = states.get("groups")
    blocks = EmbeddingBlocks(states["embeddings"], normalize, states["embeddings"].device)
    if len(items) < len(blocks):
        blocks = blocks.reordered(items)
    return LabelledEmbeddings(blocks, states["labels"][items], items, None if groups is None else groups[items])


def deduplicate(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keeps the first item for each index, sorted by index.

    Args:
        states: embeddings (N, D), indices (N,) and other columns (N,).

    Raises:
        ValueError: if items with the same index differ in a column.
    """
    indices = states["indices"]
    first_positions = first_occurrences(indices)  # (M,)
    # position of the first item with the same index
    first_position_of = first_positions[torch.searchsorted(indices[first_positions], indices)]  # (N,)
    items = torch.arange(len(indices), device=indices.device)
    duplicates = (first_position_of != items).nonzero().squeeze(1)
    for name, values in states.items():
        if name == "embeddings":
            continue
        different = duplicates[values[duplicates] != values[first_position_of[duplicates]]]
        if len(different):
            raise ValueError(
                f"Index {int(indices[different[0]])} was passed twice, with different {name}: `indices` must be "
                "positions in the whole data set, not in a batch or subset."
            )
    warn_if_embeddings_differ(states["embeddings"], indices, duplicates, first_position_of)
    if torch.equal(first_positions, items):
        return dict(states)
    return {name: values[first_positions] for name, values in states.items()}


def warn_if_embeddings_differ(
    embeddings: Tensor, indices: Tensor, duplicates: Tensor, first_position_of: Tensor
) -> None:
    """Warns if duplicate embeddings of an item differ by more than 10% of the norm.

    Rounding differs between batches, so duplicates need not be equal.

    Args:
        embeddings: (N, D).
        indices: (N,) indices of the items.
        duplicates: (A,) items whose index was passed before.
        first_position_of: (N,) position of the first item with the same index.
    """
    for part in torch.split(duplicates, BLOCK_SIZE):
        before, now = embeddings[first_position_of[part]].double(), embeddings[part].double()
        far = part[(now - before).norm(dim=1) > 0.1 * before.norm(dim=1)]
        if len(far):
            rank_zero_warn(
                f"Index {int(indices[far[0]])} was passed twice, with different embeddings; the first one counts. "
                "Evaluate in eval mode without random augmentation, and pass positions in the whole data set."
            )
            return


def first_occurrences(indices: Tensor) -> Tensor:
    """Position (M,) of the first occurrence of each unique value of `indices` (N,), sorted by value.

    >>> first_occurrences(torch.tensor([7, 5, 7]))
    tensor([1, 0])
    """
    order = torch.argsort(indices, stable=True)
    ordered = indices[order]
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    return order[is_new]


def add_empty_states(metric: Metric, gather: Callable[..., list[Tensor]], group: Any) -> None:
    """Adds empty states on processes without data, because gather needs equal dtypes and dimensions.

    Args:
        metric: the metric whose states will be gathered.
        gather: function (tensor, group) -> list of each process's tensor.
        group: process group.

    Raises:
        ValueError: on every process, if the dimensions of the embeddings differ.
    """
    pieces = [*metric.metric_state["embeddings"]]
    dtype = reduce(torch.promote_types, (piece.dtype for piece in pieces)) if pieces else FLOAT_DTYPES[0]
    dtype_and_dim = (FLOAT_DTYPES.index(dtype), pieces[0].shape[1] if pieces else -1)
    is_passed = [len(getattr(metric, name)) > 0 for name in COLUMNS]
    this_process = torch.tensor([*dtype_and_dim, *is_passed], device=metric.device)
    all_processes = torch.stack(gather(this_process, group=group)).tolist()
    non_empty = [row for row in all_processes if row[1] >= 0]
    if not non_empty:
        return
    if len({row[1] for row in non_empty}) > 1:
        dims = [row[1] for row in non_empty]
        raise ValueError(f"embeddings must have the same dimension on all processes, got {dims}.")
    dtype = reduce(torch.promote_types, (FLOAT_DTYPES[row[0]] for row in non_empty))
    pieces = pieces or [torch.zeros(0, non_empty[0][1], device=metric.device)]
    metric.embeddings = [dim_zero_cat(pieces).to(dtype)]
    for column, name in enumerate(COLUMNS, start=2):
        if any(row[column] for row in all_processes) and not getattr(metric, name):
            setattr(metric, name, [torch.zeros(0, dtype=COLUMNS[name], device=metric.device)])


def convert_only_embeddings(metric: Metric, convert: Callable[[], Any]) -> None:
    """Converts a metric's dtype, but not its columns: a float dtype cannot represent large integers exactly."""
    columns = {name: getattr(metric, name) for name in COLUMNS}
    convert()
    for name, values in columns.items():
        setattr(metric, name, values)
