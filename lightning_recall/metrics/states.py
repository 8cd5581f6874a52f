"""What a metric keeps of each item until it computes: rows of embeddings, and columns beside them."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn

from lightning_recall.search.embedding_blocks import BLOCK_ROWS
from lightning_recall.search.inputs import FLOATS, check_finite

INTEGERS, FLAGS = torch.int64, torch.bool
COLUMNS = {
    "labels": INTEGERS,
    "indices": INTEGERS,
    "groups": INTEGERS,
    "ignored": INTEGERS,
    "is_query": FLAGS,
    "is_gallery": FLAGS,
}
"""name of a state -> its type"""


def add_states(metric: Metric, *names: str) -> None:
    """Adds empty states for the embeddings and the named columns."""
    for name in ("embeddings", *names):
        metric.add_state(name, default=[], dist_reduce_fx="cat")


def columns_of(metric: Metric) -> list[str]:
    """Names of the columns that a metric keeps."""
    return [name for name in COLUMNS if hasattr(metric, name)]


def append_rows(metric: Metric, embeddings: Tensor, **columns: Tensor | None) -> None:
    """Keeps a copy of a batch, all on the device of its embeddings; columns that are None are left as they are.

    A copy, since embeddings may be a view of far more than them, or be overwritten.
    """
    states: dict[str, list[Tensor]] = {name: getattr(metric, name) for name in ("embeddings", *columns)}
    states["embeddings"].append(embeddings.detach().clone())
    for name, values in columns.items():
        if values is not None:
            states[name].append(values.detach().to(embeddings.device, COLUMNS[name], copy=True))


def gathered_rows(metric: Metric, ignore_index: int | None = None) -> dict[str, Tensor]:
    """All that was added, each item once: {"embeddings": (N, D), "labels": (N,), ...}; columns never given are missing.

    Items with the label `ignore_index` are left out. If there are indices, items are in their order.

    Raises:
        ValueError: if nothing was added, or what was added does not fit.
    """
    names = ["embeddings", *columns_of(metric)]
    known = {name: dim_zero_cat(getattr(metric, name)) for name in names if len(getattr(metric, name)) > 0}
    if not known:
        raise ValueError("Scores of nothing: no batch was added with update().")
    for name, values in known.items():
        if len(values) != len(known["embeddings"]):
            raise ValueError(f"Give {name} with every batch, or with none.")
    if known["embeddings"].device.type == "mps":  # which has no float64
        known = {name: values.cpu() for name, values in known.items()}
    if ignore_index is not None:
        kept = known["labels"] != ignore_index  # (N,)
        known = known if bool(kept.all()) else {name: values[kept] for name, values in known.items()}
    check_finite(known["embeddings"])
    return once_each(known) if "indices" in known else known


def once_each(known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each item once, by ascending index; of an index that was given more than once, the first.

    Args:
        known: embeddings (N, D), indices (N,) and other columns (N,).

    Raises:
        ValueError: if an index was given with different columns.
    """
    indices = known["indices"]
    once = first_of_each(indices)  # (M,)
    first = once[torch.searchsorted(indices[once], indices)]  # (N,) where each row's index was given first
    rows = torch.arange(len(indices), device=indices.device)
    again = (first != rows).nonzero().squeeze(1)
    for name, values in known.items():
        differs = again[values[again] != values[first[again]]] if name != "embeddings" else again[:0]
        if len(differs):
            raise ValueError(
                f"Index {int(indices[differs[0]])} was given twice, with different {name}: `indices` must be places "
                "in the whole data set, not in a batch or in a part of the data."
            )
    warn_if_embeddings_differ(known["embeddings"], indices, again, first)
    return dict(known) if torch.equal(once, rows) else {name: values[once] for name, values in known.items()}


def warn_if_embeddings_differ(embeddings: Tensor, indices: Tensor, again: Tensor, first: Tensor) -> None:
    """Warns where an item's second embedding is further from its first than a tenth of its length.

    Rounding differs between batches, so they need not be equal.

    Args:
        embeddings: (N, D).
        indices: (N,) of the items.
        again: (A,) rows whose items were given before.
        first: (N,) where each row's item was given first.
    """
    for part in torch.split(again, BLOCK_ROWS):
        before, now = embeddings[first[part]].double(), embeddings[part].double()
        far = part[(now - before).norm(dim=1) > 0.1 * before.norm(dim=1)]
        if len(far):
            rank_zero_warn(
                f"Index {int(indices[far[0]])} was given twice, with different embeddings; the first counts. Evaluate "
                "in eval mode without random augmentation, and give places in the whole data set as indices."
            )
            return


def first_of_each(indices: Tensor) -> Tensor:
    """Places (M,) at which each of the M different values of `indices` (N,) stands first, by ascending value."""
    order = torch.argsort(indices, stable=True)
    ordered = indices[order]
    return order[torch.cat([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]])]


def complete_states(metric: Metric, gather: Callable[..., list[Tensor]], group: Any) -> None:
    """Gives a process without rows the empty states that it needs, since a gather takes equal types and widths.

    Args:
        metric: whose states are about to be gathered.
        gather: one tensor of each process, given one's own and the group.
        group: of the processes.

    Raises:
        ValueError: on every process, if their embeddings differ in width.
    """
    names = columns_of(metric)
    pieces = [*metric.metric_state["embeddings"]]
    dtype = reduce(torch.promote_types, (piece.dtype for piece in pieces)) if pieces else FLOATS[0]
    kind = (FLOATS.index(dtype), pieces[0].shape[1] if pieces else -1)
    given = [len(getattr(metric, name)) > 0 for name in names]
    every = torch.stack(gather(torch.tensor([*kind, *given], device=metric.device), group=group)).tolist()
    holding = [row for row in every if row[1] >= 0]
    if not holding:
        return
    if len({row[1] for row in holding}) > 1:
        raise ValueError(f"embeddings must be of one width, got {[row[1] for row in holding]} on different processes.")
    dtype = reduce(torch.promote_types, (FLOATS[row[0]] for row in holding))
    pieces = pieces or [torch.zeros(0, holding[0][1], device=metric.device)]
    metric.embeddings = [dim_zero_cat(pieces).to(dtype)]
    for place, name in enumerate(names, start=2):
        if any(row[place] for row in every) and not getattr(metric, name):
            setattr(metric, name, [torch.zeros(0, dtype=COLUMNS[name], device=metric.device)])


def restore_columns(metric: Metric, change: Callable[[], Any]) -> None:
    """Changes a metric's type; its columns stay integers and bools, which other types could not tell apart."""
    kept = {name: getattr(metric, name) for name in columns_of(metric)}
    change()
    for name, state in kept.items():
        setattr(metric, name, state)
