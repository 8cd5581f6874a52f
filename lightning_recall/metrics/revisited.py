"""Mean average precision of revisited Oxford and Paris: Easy, Medium and Hard."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_recall.metrics.scores import check_ks
from lightning_recall.metrics.states import add_states, append_rows, complete_states, first_of_each, restore_columns
from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.inputs import check_finite, check_flags, check_integers, check_matrices
from lightning_recall.search.ranks import QueryItemPairs, full_precision
from lightning_recall.search.relevant_ranks import RelevantRanks, rank_pairs
from lightning_recall.search.result import SearchResult

EASY, HARD, JUNK = range(3)
PROTOCOLS = {"easy": {EASY}, "medium": {EASY, HARD}, "hard": {HARD}}
"""name -> what counts as right; all else that is told of a query is passed over"""


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
    before precision is measured; queries without a right image are left out. Of equally similar images wrong ones count
    as nearer, and similarities too close for fp32 are compared in float64, as in `RetrievalScores`.

    Source: Radenovic, Iscen, Tolias, Avrithis, Chum, "Revisiting Oxford and Paris: Large-Scale Image Retrieval
    Benchmarking", CVPR 2018.

    Args:
        ground_truth: of each of the Q queries.
        ks: cut-offs of mP@k.
        kwargs: for `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D) and the indices (B,) of their items: 0 to Q - 1 are the queries, the others
    the gallery in order; `compute` gives {"easy/map": scalar in [0, 1], "easy/mp@1": ..., "medium/map": ..., ...}.

    Raises:
        ValueError: for a ground truth with numbers below 0, lists or arrays, no indices or negative ones, and from
            `compute` if an item was not given, or no query has a right image.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    embeddings: list[Tensor]
    indices: list[Tensor]
    ignored: list[Tensor]

    def __init__(self, ground_truth: Sequence[GroundTruth], ks: Sequence[int] = (1, 5, 10), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ground_truth = list(ground_truth)
        below = [i for truth in self.ground_truth for part in truth for i in part if i < 0]
        if below:
            raise ValueError(f"ground_truth must be numbers in the gallery, from 0, got {below[0]}.")
        self.ks = check_ks(ks)
        add_states(self, "indices", "ignored")

    def update(self, embeddings: Tensor, indices: Tensor | None, ignored: Tensor | None = None) -> None:
        """Adds a batch: embeddings (B, D), which items they are of (B,), and which of them do not count (B,) bool.

        An item that does not count, such as an image that could not be read, neither queries nor is searched.
        """
        if indices is None:
            raise ValueError("Queries and gallery are told by their place: evaluate in order (shuffle=False).")
        check_matrices(embeddings=embeddings)
        check_integers(len(embeddings), indices=indices)
        check_flags(len(embeddings), ignored=ignored)
        check_finite(embeddings)
        places = indices.to(embeddings.device)
        if bool((places < 0).any()):
            raise ValueError(f"indices must be from 0, got {int(places.min())}.")
        without = places[:0] if ignored is None else places[ignored.to(embeddings.device)]
        append_rows(self, embeddings, indices=places, ignored=without)

    def compute(self) -> dict[str, Tensor]:
        """Mean over the queries, for each protocol."""
        return self.search().means()

    def search(self) -> SearchResult:
        """What `compute` averages; the ranks of the first right image are those of the protocol Medium.

        With several processes, call it within `sync_context()`, as `compute` does by itself; each process gets all.
        """
        if len(self.indices) == 0:
            raise ValueError("Scores of nothing: no batch was added with update().")
        indices = dim_zero_cat(self.indices)
        once = first_of_each(indices)
        if int(indices.max()) != len(once) - 1:
            raise ValueError(
                f"{int(indices.max()) + 1 - len(once)} items were not given: a ranking without them is another."
            )
        if len(self.ground_truth) > len(once):
            raise ValueError(f"{len(self.ground_truth)} queries have a ground truth, but only {len(once)} items came.")
        in_order = torch.equal(indices, torch.arange(len(indices), device=indices.device))
        pieces = self.embeddings if in_order else [dim_zero_cat(self.embeddings)[once]]
        device = torch.device("cpu") if indices.device.type == "mps" else indices.device  # which has no float64
        count, ignored = len(self.ground_truth), set(dim_zero_cat(self.ignored).tolist())
        truths = [
            GroundTruth(*([] if query in ignored else [i for i in part if i + count not in ignored] for part in truth))
            for query, truth in enumerate(self.ground_truth)
        ]
        matches, is_easy = rank_landmarks(EmbeddingBlocks(pieces, device=device), truths, sorted(ignored))
        if len(matches.queries) == 0:
            raise ValueError("No query has a right image in the gallery.")
        relevant = {q: torch.tensor([*t.easy, *t.hard]) + count for q, t in enumerate(truths)}
        ranks, every = matches.ranks[matches.place == 0], indices[once]
        scores = {name: values.to(device) for name, values in self.scores(matches, is_easy).items()}
        return SearchResult(pieces, None, every, every[count:], matches.queries, ranks, scores, True, relevant)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Figure and axes of one value, of several in order, or of what was added; needs matplotlib."""
        return self._plot(val, ax)

    def set_dtype(self, dst_type: str | torch.dtype) -> "RevisitedMAP":
        """Changes the type of the embeddings, and of nothing else."""
        restore_columns(self, partial(super().set_dtype, dst_type))
        return self

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None) -> None:
        complete_states(self, dist_sync_fn, process_group or self.process_group)
        super()._sync_dist(dist_sync_fn, process_group)

    def scores(self, matches: RelevantRanks, is_easy: Tensor) -> dict[str, Tensor]:
        """Each protocol's scores of each query (q,); NaN where it has no right image."""
        num_queries = len(matches.queries)
        scores = {
            f"{name}/{score}": torch.full((num_queries,), torch.nan, dtype=torch.float64)
            for name in PROTOCOLS
            for score in ("map", *(f"mp@{k}" for k in self.ks))
        }
        for name, right in PROTOCOLS.items():
            wanted = (is_easy & (EASY in right)) | (~is_easy & (HARD in right))
            for query in range(num_queries):
                of_query = (matches.query == query) & wanted
                wrong_before = (matches.ranks - 1 - matches.place)[of_query].cpu()
                if len(wrong_before):
                    ranks = wrong_before + torch.arange(len(wrong_before))  # from 0
                    scores[f"{name}/map"][query] = trapezoid_average_precision(ranks, len(ranks))
                    for k in self.ks:
                        scores[f"{name}/mp@{k}"][query] = precision_at(ranks, k)
        return {name: values for name, values in scores.items() if not values.isnan().all()}


def rank_landmarks(
    rows: EmbeddingBlocks, ground_truth: Sequence[GroundTruth], ignored: Sequence[int] = ()
) -> tuple[RelevantRanks, Tensor]:
    """Ranks easy and hard images alike, past junk; what a protocol passes over changes only which of them count.

    Args:
        rows: Q queries, then the gallery.
        ground_truth: of each query.
        ignored: rows that are not searched.

    Returns:
        The matches, and which of their items (P,) are easy.
    """
    count = len(ground_truth)
    queries = rows.rows(torch.arange(count, device=rows.device))
    parts = []
    for number, truth in enumerate(ground_truth):
        told = [(count + i, kind) for kind, items in enumerate(truth) for i in items]
        told += [(row, JUNK) for row in {*range(count), *ignored}]  # queries are not searched
        parts.append(torch.tensor([(number, *pair) for pair in told]))
    query, item, kind = torch.cat(parts).to(rows.device).unbind(1)
    with full_precision(rows.device):
        if int(item.max()) >= len(rows):
            raise ValueError(f"The ground truth names gallery image {int(item.max()) - count} of {len(rows) - count}.")
        numbers = torch.split(item, torch.bincount(query).tolist())
        similarity = torch.cat([rows.rows(items) @ own for items, own in zip(numbers, queries, strict=True)])
        matches = rank_pairs(
            EmbeddingBlocks(queries, device=rows.device), rows, QueryItemPairs(query, item), similarity, kind == JUNK
        )
    easy = (query * len(rows) + item)[kind == EASY]
    return matches, torch.isin(matches.queries[matches.query] * len(rows) + matches.item, easy)
