"""Mean average precision of revisited Oxford and Paris: Easy, Medium and Hard."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from lightning_recall.checks import check_finite, check_tensors, ks_to_tuple
from lightning_recall.metrics.base import RetrievalMetric
from lightning_recall.metrics.states import check_updated, first_occurrences
from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.ranks import QueryItemPairs, full_precision
from lightning_recall.search.relevant_ranks import RelevantRanks, rank_pairs
from lightning_recall.search.result import SearchResult

EASY, HARD, JUNK = range(3)
PROTOCOLS = {"easy": {EASY}, "medium": {EASY, HARD}, "hard": {HARD}}
"""protocol -> relevant difficulty levels; other annotated images are ignored"""


class GroundTruth(NamedTuple):
    """Which gallery images show a query's landmark: gallery indices, starting at 0."""

    easy: Sequence[int]
    hard: Sequence[int]
    junk: Sequence[int]


def trapezoid_average_precision(ranks: Tensor, num_relevant: int) -> float:
    """Area under the precision-recall curve by the trapezoid rule.

    The official evaluation code uses it; scikit-learn's average_precision_score uses the rectangle rule.

    Args:
        ranks: (P,) ranks of the relevant items, starting at 0, ascending.
        num_relevant: number of relevant items.

    >>> trapezoid_average_precision(torch.tensor([0, 2]), 2)  # (1 + 1) / 4 + (1/2 + 2/3) / 4
    0.7916666666666666
    """
    position = torch.arange(len(ranks), dtype=torch.float64)
    ranks = ranks.double()
    before = torch.where(ranks == 0, 1.0, position / ranks.clamp(min=1))
    after = (position + 1) / (ranks + 1)
    return float(((before + after) / 2).sum() / num_relevant)


def precision_at(ranks: Tensor, k: int) -> float:
    """Precision at min(k, rank of the last relevant item).

    Args:
        ranks: (P,) ranks of the relevant items, starting at 0, ascending; at least one.
        k: cut-off, at least 1.
    """
    cutoff = min(int(ranks[-1]) + 1, k)
    return float((ranks < cutoff).sum()) / cutoff


class RevisitedMAP(RetrievalMetric):
    """mAP and mP@k of revisited Oxford and Paris, by the protocols Easy, Medium and Hard.

    Each query ranks the gallery by cosine similarity. Images ignored by a protocol are removed before computing
    precision; queries without a relevant image are skipped. Ties count against the query, and similarities too close
    for float32 are compared in float64, as in `RetrievalScores`.

    Source: Radenovic, Iscen, Tolias, Avrithis, Chum, "Revisiting Oxford and Paris: Large-Scale Image Retrieval
    Benchmarking", CVPR 2018.

    Args:
        ground_truth: one GroundTruth per query, Q in total.
        ks: cut-offs of mP@k.
        ignore_index: items with this label, such as unreadable images, are excluded from queries and gallery; None
            excludes nothing.
        kwargs: keyword arguments passed to `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,), which are only compared with `ignore_index`, and the indices
    (B,) of the items: indices 0 to Q - 1 are queries, Q and above are gallery images. It takes the other arguments of
    `RetrievalScores.update` too, which do not change the value. `compute` gives {"easy/map": scalar in [0, 1],
    "easy/mp@1": ..., "medium/map": ..., ...}.

    Raises:
        ValueError: if the ground truth has negative indices, inputs are not tensors, or indices are missing or
            negative. `compute` raises if an item is missing, or if no query has a relevant image.

    >>> metric = RevisitedMAP([GroundTruth(easy=[1], hard=[], junk=[])], ks=(1,))
    >>> metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]), torch.zeros(3).long(), torch.arange(3))
    >>> metric.compute()
    {'easy/map': tensor(1.), 'easy/mp@1': tensor(1.), 'medium/map': tensor(1.), 'medium/mp@1': tensor(1.)}
    """

    def __init__(
        self,
        ground_truth: Sequence[GroundTruth],
        ks: Sequence[int] = (1, 5, 10),
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(ignore_index, **kwargs)
        self.ground_truth = list(ground_truth)
        negative = [i for truth in self.ground_truth for part in truth for i in part if i < 0]
        if negative:
            raise ValueError(f"ground_truth must hold gallery indices, at least 0, got {negative[0]}.")
        self.ks = ks_to_tuple(ks)

    def update(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices: Tensor | None = None,
        is_query: Tensor | None = None,
        is_gallery: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        """Adds a batch, as `RetrievalScores.update` does; `indices` (B,) are required."""
        if indices is None:
            raise ValueError(
                "RevisitedMAP needs indices, because they separate queries from gallery: use a loader with "
                "shuffle=False."
            )
        check_tensors(indices=indices)
        if bool((indices < 0).any()):
            raise ValueError(f"indices must be at least 0, got {int(indices.min())}.")
        super().update(embeddings, labels, indices, is_query, is_gallery, groups)

    def compute(self) -> dict[str, Tensor]:
        """Computes the mean over the queries, for each protocol."""
        return self.search().means()

    def search(self) -> SearchResult:
        """Returns per-query scores; `first_ranks` follow the Medium protocol.

        With several processes, call it within `sync_context()`. `compute` does this automatically. Every process gets
        the full result.
        """
        embeddings, indices, is_ignored = self._items()
        device = torch.device("cpu") if indices.device.type == "mps" else indices.device  # MPS does not support float64
        num_queries, ignored = len(self.ground_truth), set(indices[is_ignored].tolist())
        truths = [
            GroundTruth(
                *([] if query in ignored else [i for i in part if i + num_queries not in ignored] for part in truth)
            )
            for query, truth in enumerate(self.ground_truth)
        ]
        ranks, is_easy = rank_landmarks(EmbeddingBlocks(embeddings, device=device), truths, sorted(ignored))
        if len(ranks.queries) == 0:
            raise ValueError("No query has a relevant image in the gallery.")
        relevant = {query: torch.tensor([*t.easy, *t.hard]) + num_queries for query, t in enumerate(truths)}
        first_ranks = ranks.rank[ranks.num_relevant_before == 0]
        gallery = indices[num_queries:][~is_ignored[num_queries:]]
        scores = {name: values.to(device) for name, values in self._scores(ranks, is_easy).items()}
        return SearchResult(embeddings, None, indices, gallery, ranks.queries, first_ranks, scores, True, relevant)

    def _items(self) -> tuple[list[Tensor], Tensor, Tensor]:
        """Embeddings, in one or more pieces (n, D), indices (N,) = 0, ..., N - 1, and which items (N,) are ignored.

        The pieces are concatenated only if they are not in the order of the indices.
        """
        check_updated(self)
        indices, labels = dim_zero_cat(self.indices), dim_zero_cat(self.labels)
        first_positions = first_occurrences(indices)
        num_missing = int(indices.max()) + 1 - len(first_positions)
        if num_missing:
            raise ValueError(f"{num_missing} items are missing; the ranking needs every image of the data set.")
        num_queries = len(self.ground_truth)
        if num_queries > len(first_positions):
            num_items = len(first_positions)
            raise ValueError(f"ground_truth has {num_queries} queries, but only {num_items} items were added.")
        is_ignored = torch.zeros_like(first_positions, dtype=torch.bool)
        if self.ignore_index is not None:
            is_ignored = labels[first_positions] == self.ignore_index
        in_order = torch.equal(indices, torch.arange(len(indices), device=indices.device))
        embeddings: Any = self.embeddings if in_order else dim_zero_cat(self.embeddings)[first_positions]
        # torchmetrics concatenates the list when it gathers the states
        pieces = [embeddings] if isinstance(embeddings, Tensor) else list(embeddings)
        for piece, ignored in zip(pieces, torch.split(is_ignored, [len(piece) for piece in pieces]), strict=True):
            check_finite(piece[~ignored] if bool(ignored.any()) else piece)
        return pieces, indices[first_positions], is_ignored

    def _scores(self, ranks: RelevantRanks, is_easy: Tensor) -> dict[str, Tensor]:
        """Scores of each query (q,) by each protocol; NaN for queries without a relevant image."""
        num_queries = len(ranks.queries)
        scores = {
            f"{name}/{score}": torch.full((num_queries,), torch.nan, dtype=torch.float64)
            for name in PROTOCOLS
            for score in ("map", *(f"mp@{k}" for k in self.ks))
        }
        for name, levels in PROTOCOLS.items():
            is_relevant = (is_easy & (EASY in levels)) | (~is_easy & (HARD in levels))
            for query in range(num_queries):
                is_selected = (ranks.query_position == query) & is_relevant
                # number of irrelevant items before each relevant one
                num_irrelevant = (ranks.rank - 1 - ranks.num_relevant_before)[is_selected].cpu()
                if len(num_irrelevant):
                    zero_based_ranks = num_irrelevant + torch.arange(len(num_irrelevant))
                    scores[f"{name}/map"][query] = trapezoid_average_precision(zero_based_ranks, len(zero_based_ranks))
                    for k in self.ks:
                        scores[f"{name}/mp@{k}"][query] = precision_at(zero_based_ranks, k)
        return {name: values for name, values in scores.items() if not values.isnan().all()}


def rank_landmarks(
    embeddings: EmbeddingBlocks, ground_truth: Sequence[GroundTruth], ignored: Sequence[int] = ()
) -> tuple[RelevantRanks, Tensor]:
    """Ranks easy and hard images together, without junk; each protocol selects its ranks later.

    Args:
        embeddings: Q queries, then the gallery.
        ground_truth: one GroundTruth per query.
        ignored: indices excluded from the gallery.

    Returns:
        The ranks, and a mask (P,) of the easy items.
    """
    num_queries = len(ground_truth)
    queries = embeddings.select(torch.arange(num_queries, device=embeddings.device))
    parts = []
    for query_index, truth in enumerate(ground_truth):
        annotated = [(query_index, num_queries + i, level) for level, items in enumerate(truth) for i in items]
        annotated += [(query_index, i, JUNK) for i in {*range(num_queries), *ignored}]  # queries are not in the gallery
        parts.append(torch.tensor(annotated))
    query, item, level = torch.cat(parts).to(embeddings.device).unbind(1)
    if int(item.max()) >= len(embeddings):
        raise ValueError(
            f"ground_truth contains gallery index {int(item.max()) - num_queries}, but the gallery has "
            f"{len(embeddings) - num_queries} images."
        )
    with full_precision(embeddings.device):
        items_by_query = torch.split(item, torch.bincount(query).tolist())
        similarity = torch.cat(
            [
                embeddings.select(items) @ query_embedding
                for items, query_embedding in zip(items_by_query, queries, strict=True)
            ]
        )
        query_blocks = EmbeddingBlocks(queries, device=embeddings.device)
        ranks = rank_pairs(query_blocks, embeddings, QueryItemPairs(query, item), similarity, level == JUNK)
    easy = (query * len(embeddings) + item)[level == EASY]
    return ranks, torch.isin(ranks.queries[ranks.query_position] * len(embeddings) + ranks.item, easy)
