"""Recall@k as a hit rate: is any of the k nearest of the same class?"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

BLOCK_ELEMENTS = 2**22  # similarities held at a time, 16 MiB in fp32


def rank_of_first_match(
    embeddings: Tensor, labels: Tensor, is_query: Tensor | None = None, is_gallery: Tensor | None = None
) -> Tensor:
    """How many items of other classes are at least as similar to each query as the best of its own class, plus one.

    A query never finds itself. Ties count against the query, so that a network which maps everything to one point
    scores 0, not 1.

    Args:
        embeddings: (N, D) floating point.
        labels: (N,) integers.
        is_query: (N,) which rows are queries; None: all.
        is_gallery: (N,) which rows are searched; None: all.

    Returns:
        For each of the Q queries in order, int64 from 1; 0 where no other row that is searched has the query's label.
    """
    embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    everything = torch.arange(len(embeddings), device=embeddings.device)
    queries = everything if is_query is None else everything[is_query]
    searched = everything if is_gallery is None else everything[is_gallery]
    gallery, gallery_labels = (embeddings, labels) if is_gallery is None else (embeddings[searched], labels[searched])
    if len(queries) == 0 or len(gallery) == 0:
        return torch.zeros(len(queries), dtype=torch.int64, device=embeddings.device)
    ranks = []
    for rows in torch.split(queries, max(1, BLOCK_ELEMENTS // len(gallery))):
        similarities = embeddings[rows] @ gallery.T  # (q, G)
        others = labels[rows, None] != gallery_labels  # (q, G)
        relevant = ~others & (rows[:, None] != searched)
        best = similarities.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)  # (q, 1)
        rank = 1 + (others & (similarities >= best)).sum(1)
        ranks.append(rank.masked_fill(~relevant.any(1), 0))
    return torch.cat(ranks)


def first_of_each(indices: Tensor) -> Tensor:
    """Places (M,) at which each of the M different values of `indices` (N,) stands first, by ascending value."""
    order = torch.argsort(indices, stable=True)
    ordered = indices[order]
    return order[torch.cat([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]])]


class RecallAtK(Metric):
    """Share of the queries that find an item of their own class among their k nearest, leave-one-out.

    This is the number that retrieval benchmarks report as Recall@k. It is a hit rate, not the share of relevant items
    found, which is `torchmetrics.retrieval.RetrievalRecall`. Every item queries all the others by cosine similarity,
    unless `update` tells queries from gallery; an item of whose class no other is searched is no query, but may be
    retrieved. Ties count against the query.

    The N x N similarities are computed a block of rows at a time and never held together. Items with the same index
    are one item seen again, such as those with which a distributed sampler fills its last batch, and count once.

    Args:
        ks: cut-offs, integers from 1.
        normalize: whether to scale embeddings to unit length, on by default; off ranks by dot products.
        ignore_index: items with this label are left out, neither queries nor retrieved; None: there are none.
        kwargs: for `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,) and, optionally, indices, is_query and is_gallery (B,);
    `compute` gives {"recall@1": scalar in [0, 1], ...}.

    Raises:
        ValueError: for empty or non-positive `ks`, embeddings and labels that do not fit or are not finite, indices for
            some batches only, and from `compute` if no item has another of its class.

    >>> metric = RecallAtK(ks=(1, 2))
    >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([5, 5, 6, 6]))
    >>> metric.compute()
    {'recall@1': tensor(1.), 'recall@2': tensor(1.)}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    embeddings: list[Tensor]
    labels: list[Tensor]
    indices: list[Tensor]
    is_query: list[Tensor]
    is_gallery: list[Tensor]

    def __init__(
        self, ks: Sequence[int] = (1, 2, 4, 8), normalize: bool = True, ignore_index: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not ks or any(k < 1 or int(k) != k for k in ks):
            raise ValueError(f"ks must be one or more integers from 1, got {tuple(ks)}.")
        self.ks = tuple(ks)
        self.normalize = normalize
        self.ignore_index = ignore_index
        for name in ("embeddings", "labels", "indices", "is_query", "is_gallery"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices: Tensor | None = None,
        is_query: Tensor | None = None,
        is_gallery: Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            embeddings: (B, D) floating point.
            labels: (B,) integers.
            indices: (B,) of the items in their data set, if known.
            is_query: (B,) bool, which items are queries; None: all.
            is_gallery: (B,) bool, which items are searched; None: all.
        """
        if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
            raise ValueError(
                "embeddings must be of shape (B, D) and labels (B,), "
                f"got {tuple(embeddings.shape)} and {tuple(labels.shape)}."
            )
        if labels.is_floating_point():
            raise ValueError(f"labels must be integers, got {labels.dtype}.")
        if (indices is not None) != (len(self.indices) > 0) and len(self.labels) > 0:
            raise ValueError("Give indices with every batch, or with none.")
        kept = labels == labels if self.ignore_index is None else labels != self.ignore_index  # (B,)
        if not torch.isfinite(embeddings[kept]).all():
            raise ValueError("embeddings hold NaN or infinity: the network has diverged or its input is broken.")
        self.embeddings.append(embeddings.detach()[kept])
        self.labels.append(labels[kept])
        for state, given in ((self.is_query, is_query), (self.is_gallery, is_gallery)):
            state.append(kept[kept] if given is None else given.to(labels.device)[kept])
        if indices is not None:
            self.indices.append(indices.to(labels.device)[kept])

    def compute(self) -> dict[str, Tensor]:
        """Recall@k over all that was added, for each k."""
        if len(self.embeddings) == 0:
            raise ValueError("Recall@k of nothing: no batch was added with update().")
        embeddings, labels = dim_zero_cat(self.embeddings), dim_zero_cat(self.labels)
        is_query, is_gallery = dim_zero_cat(self.is_query), dim_zero_cat(self.is_gallery)
        if len(self.indices) > 0:
            once = first_of_each(dim_zero_cat(self.indices))
            embeddings, labels, is_query, is_gallery = (v[once] for v in (embeddings, labels, is_query, is_gallery))
        embeddings = F.normalize(embeddings, dim=1) if self.normalize else embeddings
        searched = None if is_gallery.all() else is_gallery  # saves a copy of the embeddings
        ranks = rank_of_first_match(embeddings, labels, is_query, searched)
        ranks = ranks[ranks > 0]
        if len(ranks) == 0:
            raise ValueError(
                f"None of the {len(labels)} items has another of its class to find, so there is no query: "
                "evaluate classes with at least 2 images, in more or larger batches."
            )
        return {f"recall@{k}": (ranks <= k).float().mean() for k in self.ks}
