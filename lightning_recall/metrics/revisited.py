"""Mean average precision of revisited Oxford and Paris: Easy, Medium and Hard."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_recall.metrics.recall_at_k import first_of_each

PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""name -> what counts as right, what is passed over"""


class GroundTruth(NamedTuple):
    """Which gallery images show a query's landmark: numbers in the gallery, from 0."""

    easy: Sequence[int]
    hard: Sequence[int]
    junk: Sequence[int]


def trapezoid_average_precision(ranks: Tensor, num_relevant: int) -> float:
    """Area under a query's precision-recall curve, between the points by the trapezoid rule.

    The field's evaluation of landmarks uses it; scikit-learn's average precision takes the lower corners instead.

    Args:
        ranks: (P,) of the relevant items, from 0, ascending.
        num_relevant: of how many there are.

    >>> trapezoid_average_precision(torch.tensor([0, 2]), 2)  # (1 + 1) / 4 + (1/2 + 2/3) / 4
    0.7916666666666666
    """
    found = torch.arange(len(ranks), dtype=torch.float64)
    ranks = ranks.double()
    before = torch.where(ranks == 0, 1.0, found / ranks.clamp(min=1))
    after = (found + 1) / (ranks + 1)
    return float(((before + after) / 2).sum() / num_relevant)


def precision_at(ranks: Tensor, k: int) -> float:
    """Share of relevant items among the first k, or, if all stand before that, up to the last of them.

    Args:
        ranks: (P,) of the relevant items, from 0, ascending; at least one.
        k: cut-off, from 1.
    """
    cut = min(int(ranks[-1]) + 1, k)
    return float((ranks < cut).sum()) / cut


class RevisitedMAP(Metric):
    """mAP and mP@k of revisited Oxford and Paris, by the protocols Easy, Medium and Hard.

    Each query ranks the gallery by cosine similarity. Images that a protocol passes over are taken out of the ranking
    before precision is measured; queries without a right image are left out. Equally similar images keep the order of
    the gallery.

    Source: Radenovic, Iscen, Tolias, Avrithis, Chum, "Revisiting Oxford and Paris: Large-Scale Image Retrieval
    Benchmarking", CVPR 2018.

    Args:
        ground_truth: of each of the Q queries.
        ks: cut-offs of mP@k.
        kwargs: for `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D) and the indices (B,) of their items: 0 to Q - 1 are the queries, the others
    the gallery in order; `compute` gives {"easy/map": scalar in [0, 1], "easy/mp@1": ..., "medium/map": ..., ...}.

    Raises:
        ValueError: without indices, and from `compute` if an item was not given, or no query has a right image.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    embeddings: list[Tensor]
    indices: list[Tensor]

    def __init__(self, ground_truth: Sequence[GroundTruth], ks: Sequence[int] = (1, 5, 10), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ground_truth = list(ground_truth)
        self.ks = tuple(ks)
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("indices", default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, indices: Tensor | None) -> None:
        """Adds a batch: embeddings (B, D), and which items they are of (B,)."""
        if indices is None:
            raise ValueError("Queries and gallery are told by their place: evaluate in order (shuffle=False).")
        self.embeddings.append(F.normalize(embeddings.detach().float(), dim=1))
        self.indices.append(indices.to(embeddings.device))

    def compute(self) -> dict[str, Tensor]:
        """Mean over the queries, for each protocol."""
        indices = dim_zero_cat(self.indices)
        once = first_of_each(indices)
        embeddings, size = dim_zero_cat(self.embeddings)[once], len(once)
        if size and int(indices.max()) != size - 1:
            raise ValueError(
                f"{int(indices.max()) + 1 - size} items were not given: a ranking without them is another."
            )
        count = len(self.ground_truth)
        scores: dict[str, list[float]] = {}
        for query, truth in enumerate(self.ground_truth):
            order = torch.argsort(embeddings[count:] @ embeddings[query], descending=True, stable=True).cpu()
            places = torch.empty_like(order)
            places[order] = torch.arange(len(order))
            for name, (right, passed_over) in PROTOCOLS.items():
                relevant, junk = (
                    torch.tensor([i for part in parts for i in getattr(truth, part)], dtype=torch.long)
                    for parts in (right, passed_over)
                )
                if len(relevant):
                    ranks, junk_ranks = places[relevant].sort().values, places[junk].sort().values
                    ranks = ranks - torch.searchsorted(junk_ranks, ranks)
                    scores.setdefault(f"{name}/map", []).append(trapezoid_average_precision(ranks, len(ranks)))
                    for k in self.ks:
                        scores.setdefault(f"{name}/mp@{k}", []).append(precision_at(ranks, k))
        if not scores:
            raise ValueError("No query has a right image in the gallery.")
        return {key: torch.tensor(values).mean() for key, values in scores.items()}
