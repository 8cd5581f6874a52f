"""Per-query retrieval scores, computed from the ranks of relevant items."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_recall.checks import ks_to_tuple
from lightning_recall.search.relevant_ranks import RelevantRanks


def mean_over_relevant(ranks: RelevantRanks, values: Tensor) -> Tensor:
    """Averages values (P,), one for each relevant item, over the relevant items of each query: (q,)."""
    total = torch.zeros(len(ranks.queries), dtype=torch.float64, device=values.device)
    return total.index_add_(0, ranks.query_position, values.double()) / ranks.num_relevant


def num_relevant_within(ranks: RelevantRanks, cutoff: Tensor | int) -> Tensor:
    """Number of relevant items (q,) with a rank up to `cutoff`, an integer or a tensor (q,)."""
    is_within = ranks.rank <= (cutoff if isinstance(cutoff, int) else cutoff[ranks.query_position])
    return torch.zeros_like(ranks.num_relevant).index_add_(0, ranks.query_position, is_within.long())


def recall(ranks: RelevantRanks, k: int) -> Tensor:
    """1 if any of the first k is relevant, else 0: the hit rate that retrieval benchmarks report."""
    return (num_relevant_within(ranks, k) > 0).double()


def fraction_retrieved(ranks: RelevantRanks, k: int) -> Tensor:
    """Fraction of relevant items ranked in the top k: the recall of information retrieval."""
    return num_relevant_within(ranks, k) / ranks.num_relevant.double()


def precision(ranks: RelevantRanks, k: int) -> Tensor:
    """Fraction of the top k that are relevant. Below 1 if there are fewer than k relevant items."""
    return num_relevant_within(ranks, k) / torch.tensor(k, dtype=torch.float64)


def r_precision(ranks: RelevantRanks) -> Tensor:
    """Precision at R, the number of relevant items."""
    return num_relevant_within(ranks, ranks.num_relevant) / ranks.num_relevant.double()


def map_at_r(ranks: RelevantRanks) -> Tensor:
    """Mean over ranks i = 1..R of precision@i if item i is relevant, else 0 (Musgrave et al., 2020)."""
    precisions = (ranks.num_relevant_before + 1) / ranks.rank.double()
    return mean_over_relevant(ranks, precisions * (ranks.rank <= ranks.num_relevant[ranks.query_position]))


def average_precision(ranks: RelevantRanks) -> Tensor:
    """Mean of the precision at each relevant item."""
    return mean_over_relevant(ranks, (ranks.num_relevant_before + 1) / ranks.rank.double())


def reciprocal_rank(ranks: RelevantRanks) -> Tensor:
    """1 over the rank of the first relevant item."""
    return 1 / ranks.rank[ranks.num_relevant_before == 0].double()


def inverse_negative_penalty(ranks: RelevantRanks) -> Tensor:
    """Number of relevant items over the rank of the last one: the mean is mINP (Ye et al., AGW, TPAMI 2021)."""
    is_last = ranks.num_relevant_before + 1 == ranks.num_relevant[ranks.query_position]
    return ranks.num_relevant / ranks.rank[is_last].double()


AT_K: dict[str, Callable[[RelevantRanks, int], Tensor]] = {
    "recall": recall,
    "fraction_retrieved": fraction_retrieved,
    "precision": precision,
}
"""scores at a cut-off, logged as name@k"""

OVERALL: dict[str, Callable[[RelevantRanks], Tensor]] = {
    "map@r": map_at_r,
    "r_precision": r_precision,
    "map": average_precision,
    "mrr": reciprocal_rank,
    "minp": inverse_negative_penalty,
}
"""scores without a cut-off"""

TITLES = {"recall": "R", "map@r": "mAP@R", "minp": "mINP"}
"""how the field writes a score, if not by its name"""

FIRST_RANK_SCORES = {"recall", "mrr"}
"""scores that need only the rank of the first relevant item, which is faster to find than all ranks"""


def checked_scores(scores: str | Sequence[str], ks: int | Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Scores and cut-offs as tuples of strings and integers; a single name or integer is also accepted.

    Raises:
        ValueError: if there is no name, a name is unknown or repeated, or `ks` are not distinct positive integers.
    """
    names = (scores,) if isinstance(scores, str) else tuple(scores)
    if not names or any(name not in AT_K and name not in OVERALL for name in names) or len(set(names)) < len(names):
        raise ValueError(f"scores must be distinct names from {', '.join([*AT_K, *OVERALL])}, got {names}.")
    return names, ks_to_tuple(ks)


def score_names(scores: Sequence[str], ks: Sequence[int]) -> list[str]:
    """Keys of the scores, in order: "recall@1", "map@r", ..."""
    return [key for name in scores for key in ([f"{name}@{k}" for k in ks] if name in AT_K else [name])]


def score(ranks: RelevantRanks, scores: Sequence[str], ks: Sequence[int]) -> dict[str, Tensor]:
    """Each score of each query (q,), float64: {"recall@1": ..., "map@r": ...}."""
    values = {}
    for name in scores:
        if name in AT_K:
            values.update({f"{name}@{k}": AT_K[name](ranks, k) for k in ks})
        else:
            values[name] = OVERALL[name](ranks)
    return values


def score_title(name: str) -> str:
    """How the field writes a score.

    >>> score_title("recall@10"), score_title("map@r"), score_title("minp")
    ('R@10', 'mAP@R', 'mINP')
    """
    kind, *cutoff = (name,) if name in TITLES else name.split("@")
    return "@".join([TITLES.get(kind, kind), *cutoff])
