"""Retrieval metrics of a whole matrix of similarities."""

import torch
from torch import Tensor

from lightning_recall.checks import check_tensors
from lightning_recall.metrics.scores import checked_scores, score
from lightning_recall.search.inputs import check_integers
from lightning_recall.search.relevant_ranks import RelevantRanks
from lightning_recall.tensors import arange_within_groups


def score_similarities(
    similarities: Tensor,
    labels: Tensor,
    gallery_labels: Tensor,
    scores: tuple[str, ...] = ("recall", "map"),
    ks: tuple[int, ...] = (1, 2, 4, 8),
) -> dict[str, Tensor]:
    """Mean scores of `RetrievalScores` from a whole matrix of similarities (Q, G), such as a re-ranked one.

    Args:
        similarities: (Q, G); -inf excludes an item from a query's ranking, for example the query itself.
        labels: (Q,) classes of the queries.
        gallery_labels: (G,) classes of the gallery items.
        scores: names of the scores to compute.
        ks: cut-offs k.

    Raises:
        ValueError: for unknown scores, NaN, labels that are not integer tensors (Q,) and (G,), and if no query has a
            relevant item.

    >>> similarities = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.3, 0.7]])
    >>> score_similarities(similarities, torch.tensor([1, 2]), torch.tensor([1, 2, 2]), ("recall",), (1,))
    {'recall@1': tensor(1.)}
    """
    names, cutoffs = checked_scores(scores, ks)
    check_tensors(similarities=similarities)
    if similarities.ndim != 2 or bool(similarities.isnan().any()):
        raise ValueError(f"similarities must be of shape (Q, G), without NaN, got {tuple(similarities.shape)}.")
    check_integers(len(similarities), labels=labels)
    check_integers(similarities.shape[1], gallery_labels=gallery_labels)
    relevant = (labels[:, None] == gallery_labels) & (similarities > -torch.inf)  # (Q, G)
    queries = relevant.any(1).nonzero().squeeze(1)
    if len(queries) == 0:
        raise ValueError("No query has an item of its class in the gallery.")
    ranks = _ranks(similarities, relevant, queries)
    return {name: values.mean().float() for name, values in score(ranks, names, cutoffs).items()}


def _ranks(similarities: Tensor, relevant: Tensor, queries: Tensor) -> RelevantRanks:
    """Ranks of the relevant items of the given queries (q,); ties count against the query.

    similarities: (Q, G).
    relevant: mask (Q, G).
    """
    parts = []
    for query_similarities, is_relevant in zip(similarities[queries], relevant[queries], strict=True):
        irrelevant = query_similarities[~is_relevant].sort().values
        sorted_relevant = query_similarities[is_relevant].sort(descending=True)
        num_ahead = len(irrelevant) - torch.searchsorted(irrelevant, sorted_relevant.values)
        parts.append((num_ahead, is_relevant.nonzero().squeeze(1)[sorted_relevant.indices]))
    num_ahead, items = (torch.cat(part) for part in zip(*parts, strict=True))
    num_relevant = relevant[queries].sum(1)
    num_before = arange_within_groups(num_relevant)
    query_position = torch.arange(len(queries), device=queries.device).repeat_interleave(num_relevant)
    return RelevantRanks(queries, num_relevant, query_position, num_ahead + num_before + 1, num_before, items)
