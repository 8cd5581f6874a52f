"""What a query scores, from the ranks of its relevant items."""

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from lightning_recall.search.relevant_ranks import RelevantRanks


def mean_over_relevant(matches: RelevantRanks, values: Tensor) -> Tensor:
    """Mean (q,) of values (P,), one for each rank, over all relevant items of each query."""
    total = torch.zeros(len(matches.queries), dtype=torch.float64, device=values.device)
    return total.index_add_(0, matches.query, values.double()) / matches.num_relevant


def found_within(matches: RelevantRanks, cut: Tensor | int) -> Tensor:
    """How many relevant items (q,) stand among the first `cut`, a number or one for each query (q,)."""
    within = matches.ranks <= (cut if isinstance(cut, int) else cut[matches.query])
    return torch.zeros_like(matches.num_relevant).index_add_(0, matches.query, within.long())


def recall(matches: RelevantRanks, k: int) -> Tensor:
    """1 if any of the first k is relevant, else 0: the hit rate that retrieval benchmarks report."""
    return (found_within(matches, k) > 0).double()


def fraction_retrieved(matches: RelevantRanks, k: int) -> Tensor:
    """Share of the relevant items that stand among the first k: the recall of information retrieval."""
    return found_within(matches, k) / matches.num_relevant.double()


def precision(matches: RelevantRanks, k: int) -> Tensor:
    """Share of relevant items among the first k. With fewer than k to find, or to search, it cannot be 1."""
    return found_within(matches, k) / torch.tensor(k, dtype=torch.float64)


def r_precision(matches: RelevantRanks) -> Tensor:
    """Precision at R, the number of relevant items."""
    return found_within(matches, matches.num_relevant) / matches.num_relevant.double()


def map_at_r(matches: RelevantRanks) -> Tensor:
    """Mean over the first R places of the precision there if the item is relevant, else 0 (Musgrave et al., 2020)."""
    precisions = (matches.place + 1) / matches.ranks.double()
    return mean_over_relevant(matches, precisions * (matches.ranks <= matches.num_relevant[matches.query]))


def average_precision(matches: RelevantRanks) -> Tensor:
    """Mean of the precision at each relevant item."""
    return mean_over_relevant(matches, (matches.place + 1) / matches.ranks.double())


def reciprocal_rank(matches: RelevantRanks) -> Tensor:
    """1 over the rank of the first relevant item."""
    return 1 / matches.ranks[matches.place == 0].double()


AT_K: dict[str, Callable[[RelevantRanks, int], Tensor]] = {
    "recall": recall,
    "fraction_retrieved": fraction_retrieved,
    "precision": precision,
}
"""Scores at a cut-off, logged as name@k"""

OVERALL: dict[str, Callable[[RelevantRanks], Tensor]] = {
    "map@r": map_at_r,
    "r_precision": r_precision,
    "map": average_precision,
    "mrr": reciprocal_rank,
}
"""Scores without a cut-off"""

OF_THE_FIRST = {"recall", "mrr"}
"""Scores that need only the rank of the first relevant item, which is faster to find than those of all"""


def check_scores(scores: str | Sequence[str], ks: int | Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Scores and cut-offs as tuples of strings and integers; one alone may be given as it is.

    Raises:
        ValueError: if any is wrong, given twice, or none is given.
    """
    names = (scores,) if isinstance(scores, str) else tuple(scores)
    if not names or any(name not in AT_K and name not in OVERALL for name in names) or len(set(names)) < len(names):
        raise ValueError(f"scores must be some of {', '.join([*AT_K, *OVERALL])}, each once, got {names}.")
    return names, check_ks(ks)


def check_ks(ks: int | Sequence[int]) -> tuple[int, ...]:
    """Cut-offs as a tuple of integers, from one integer or several, numpy's too.

    Raises:
        ValueError: if any is no integer from 1 or given twice, or none is given.
    """
    given: tuple[Any, ...] = tuple(ks) if isinstance(ks, Iterable) else (ks,)
    integers = [int(k) for k in given if type(k) is not bool and isinstance(k, Integral)]
    if not given or len(integers) < len(given) or min(integers) < 1 or len(set(integers)) < len(integers):
        raise ValueError(f"ks must be one or more different integers from 1, got {ks!r}.")
    return tuple(integers)


def score(matches: RelevantRanks, scores: Sequence[str], ks: Sequence[int]) -> dict[str, Tensor]:
    """Each score of each query (q,), float64: {"recall@1": ..., "map@r": ...}."""
    values = {}
    for name in scores:
        if name in AT_K:
            values.update({f"{name}@{k}": AT_K[name](matches, k) for k in ks})
        else:
            values[name] = OVERALL[name](matches)
    return values
