"""Base class of all metrics: a common `update`, and integer states that keep their dtype when gathered or converted."""

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_recall.checks import check_finite
from lightning_recall.metrics.states import (
    add_empty_states,
    add_states,
    append_batch,
    check_same_columns,
    convert_only_embeddings,
)
from lightning_recall.search.count_ahead import Processes
from lightning_recall.search.inputs import check_batch, check_bools, check_integers


class RetrievalMetric(Metric):
    """A metric over (embeddings, labels) that collects all items until `compute`.

    Args:
        ignore_index: items with this label are ignored; None keeps all items.
        kwargs: keyword arguments passed to `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    embeddings: list[Tensor]
    labels: list[Tensor]
    indices: list[Tensor]
    is_query: list[Tensor]
    is_gallery: list[Tensor]
    groups: list[Tensor]

    def __init__(self, ignore_index: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        add_states(self)

    def update(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices: Tensor | None = None,
        is_query: Tensor | None = None,
        is_gallery: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            embeddings: (B, D) floating point.
            labels: (B,) integers.
            indices: (B,) positions of the items in the whole data set; an index that is passed twice counts once.
            is_query: (B,) bool, which items are queries; None: all.
            is_gallery: (B,) bool, which items are in the gallery; None: all.
            groups: (B,) integers; a query ignores items of the same class and group, such as images of the same camera.
                None: nothing is ignored.
        """
        check_batch(embeddings, labels)
        check_integers(len(labels), indices=indices, groups=groups)
        check_bools(len(labels), is_query=is_query, is_gallery=is_gallery)
        dim = self.embeddings[0].shape[1] if len(self.embeddings) else embeddings.shape[1]
        if embeddings.shape[1] != dim:
            raise ValueError(
                f"embeddings have dimension {embeddings.shape[1]}, but earlier batches had dimension {dim}."
            )
        check_same_columns(self, {"indices": indices, "groups": groups})
        labels = labels.to(embeddings.device, torch.int64)
        check_finite(embeddings if self.ignore_index is None else embeddings[labels != self.ignore_index])
        all_true = torch.ones_like(labels, dtype=torch.bool)
        is_query, is_gallery = (all_true if mask is None else mask for mask in (is_query, is_gallery))
        columns = {"is_query": is_query, "is_gallery": is_gallery, "groups": groups}
        append_batch(self, embeddings, labels=labels, indices=indices, **columns)

    def share_items(self, other: "RetrievalMetric") -> None:
        """Takes the items of another metric of this process, without copying them."""
        for name in other.metric_state:
            setattr(self, name, getattr(other, name))
        self.ignore_index = other.ignore_index

    def processes(self) -> Processes:
        """The processes that share a search: all of them within `sync_context()`, otherwise this one."""
        if not (self._is_synced and torch.distributed.is_initialized()):
            return Processes()
        group = self.process_group
        rank, world_size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        return Processes(rank, world_size, partial(sum_over_processes, group=group))

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plots one value, a sequence of values, or the current value; returns figure and axes."""
        return self._plot(val, ax)

    def set_dtype(self, dst_type: str | torch.dtype) -> Self:
        """Converts only the embeddings to `dst_type`; integer and bool states keep their dtype."""
        convert_only_embeddings(self, partial(super().set_dtype, dst_type))
        return self

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None) -> None:
        add_empty_states(self, dist_sync_fn, process_group or self.process_group)
        super()._sync_dist(dist_sync_fn, process_group)


def sum_over_processes(values: Tensor, group: Any) -> Tensor:
    """The sum of a tensor over the processes of a group."""
    torch.distributed.all_reduce(values, group=group)
    return values
