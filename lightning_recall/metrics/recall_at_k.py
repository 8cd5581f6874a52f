"""Recall@k as a hit rate: is any of the k nearest of the same class?"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

BLOCK_ELEMENTS = 2**22  # similarities held at a time, 16 MiB in fp32


def rank_of_first_match(embeddings: Tensor, labels: Tensor) -> Tensor:
    """How many items of other classes are at least as similar to each query as the best of its own class, plus one.

    Every row queries all the others. Ties count against the query, so that a network which maps everything to one
    point scores 0, not 1.

    Args:
        embeddings: (N, D) floating point.
        labels: (N,) integers.

    Returns:
        (N,) int64 from 1; 0 where no other row has the query's label.
    """
    embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    size = max(1, BLOCK_ELEMENTS // max(1, len(embeddings)))
    ranks = []
    for first in range(0, len(embeddings), size):
        rows = torch.arange(first, min(first + size, len(embeddings)), device=embeddings.device)
        similarities = embeddings[rows] @ embeddings.T  # (q, N)
        relevant = labels[rows, None] == labels  # (q, N)
        relevant.scatter_(1, rows[:, None], False)
        others = labels[rows, None] != labels
        best = similarities.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)  # (q, 1)
        rank = 1 + (others & (similarities >= best)).sum(1)
        ranks.append(rank.masked_fill(~relevant.any(1), 0))
    return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64, device=embeddings.device)


def first_of_each(indices: Tensor) -> Tensor:
    """Places (M,) at which each of the M different values of `indices` (N,) stands first, by ascending value."""
    order = torch.argsort(indices, stable=True)
    ordered = indices[order]
    return order[torch.cat([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]])]


class RecallAtK(Metric):
    """Share of the queries that find an item of their own class among their k nearest, leave-one-out.

    This is the number that retrieval benchmarks report as Recall@k. It is a hit rate, not the share of relevant items
    found, which is `torchmetrics.retrieval.RetrievalRecall`. Every item queries all the others by cosine similarity;
    an item alone in its class is no query, but may be retrieved. Ties count against the query.

    The N x N similarities are computed a block of rows at a time and never held together. Items with the same index
    are one item seen again, such as those with which a distributed sampler fills its last batch, and count once.

    Args:
        ks: cut-offs, integers from 1.
        normalize: whether to scale embeddings to unit length, on by default; off ranks by dot products.
        kwargs: for `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,) and, optionally, indices (B,); `compute` gives {"recall@1":
    scalar in [0, 1], ...}.

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

    def __init__(self, ks: Sequence[int] = (1, 2, 4, 8), normalize: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not ks or any(k < 1 or int(k) != k for k in ks):
            raise ValueError(f"ks must be one or more integers from 1, got {tuple(ks)}.")
        self.ks = tuple(ks)
        self.normalize = normalize
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")
        self.add_state("indices", default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        """Adds a batch: embeddings (B, D) floating point, labels (B,) integers, indices (B,) of the items if known."""
        if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
            raise ValueError(
                "embeddings must be of shape (B, D) and labels (B,), "
                f"got {tuple(embeddings.shape)} and {tuple(labels.shape)}."
            )
        if labels.is_floating_point():
            raise ValueError(f"labels must be integers, got {labels.dtype}.")
        if not torch.isfinite(embeddings).all():
            raise ValueError("embeddings hold NaN or infinity: the network has diverged or its input is broken.")
        if (indices is not None) != (len(self.indices) > 0) and len(self.labels) > 0:
            raise ValueError("Give indices with every batch, or with none.")
        self.embeddings.append(embeddings.detach())
        self.labels.append(labels)
        if indices is not None:
            self.indices.append(indices.to(labels.device))

    def compute(self) -> dict[str, Tensor]:
        """Recall@k over all that was added, for each k."""
        if len(self.embeddings) == 0:
            raise ValueError("Recall@k of nothing: no batch was added with update().")
        embeddings, labels = dim_zero_cat(self.embeddings), dim_zero_cat(self.labels)
        if len(self.indices) > 0:
            once = first_of_each(dim_zero_cat(self.indices))
            embeddings, labels = embeddings[once], labels[once]
        ranks = rank_of_first_match(F.normalize(embeddings, dim=1) if self.normalize else embeddings, labels)
        ranks = ranks[ranks > 0]
        if len(ranks) == 0:
            raise ValueError(
                f"None of the {len(labels)} items has another of its class, so there is no query: "
                "evaluate classes with at least 2 images, in more or larger batches."
            )
        return {f"recall@{k}": (ranks <= k).float().mean() for k in self.ks}
