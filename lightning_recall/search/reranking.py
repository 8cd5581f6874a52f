"""Ranks again by what queries and items have in common: k-reciprocal re-ranking."""

import torch
from torch import Tensor

from lightning_recall.metrics.scores import check_scores, score
from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.inputs import check_integers, check_matrices, check_tensors
from lightning_recall.search.neighbors import nearest
from lightning_recall.search.ranks import full_precision
from lightning_recall.search.relevant_ranks import RelevantRanks


def k_reciprocal_similarities(
    queries: Tensor, gallery: Tensor, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> Tensor:
    """Similarities (Q, G) by how many k-reciprocal neighbours a query and an item share, mixed with their own.

    d* = (1 - lambda) d_J + lambda d, with d_J the Jaccard distance of the neighbourhoods and d = 2 - 2 cos, each
    query's divided by its largest; returned is -d*. It weighs neighbours by exp(-d), expands a neighbourhood by those
    of half the size that lie in it by two thirds, and averages it over the k2 nearest. Memory and time grow with
    (Q + G)^2: meant for tens of thousands of items.

    Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, section
    3; k1, k2 and lambda are its.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        k1: nearest items in a neighbourhood, from 1.
        k2: neighbourhoods averaged, from 1 to `k1`.
        lambda_value: share of the original distance, from 0 to 1.

    Raises:
        ValueError: for numbers outside their range, fewer than k1 + 1 items in all, and what are no floating point
            tensors of one width without NaN.
    """
    check_matrices(queries=queries, gallery=gallery)
    everything = torch.cat([queries, gallery])
    if not (1 <= k2 <= k1 < len(everything) and 0 <= lambda_value <= 1):
        raise ValueError(
            f"k1 = {k1} must be from 1 to below the {len(everything)} items, k2 = {k2} from 1 to k1, "
            f"lambda_value = {lambda_value} from 0 to 1."
        )
    with full_precision(everything.device):
        rows = EmbeddingBlocks(everything, device=everything.device)
        unit = rows.block(0, len(rows))  # (N, D)
        distances = (2 - 2 * unit @ unit.T).clamp_(min=0)  # (N, N)
        distances /= distances.amax(1, keepdim=True).clamp(min=1e-12)
        order = nearest(rows, rows, k1 + 1)[1]  # (N, k1 + 1), each item itself among them
        members = expanded(reciprocal(order), reciprocal(order[:, : round(k1 / 2) + 1]))  # (N, N) bool
        weights = torch.exp(-distances) * members
        weights /= weights.sum(1, keepdim=True)
        if k2 > 1:
            weights = torch.stack([weights[near].mean(0) for near in order[:, :k2]])
        num_queries = len(queries)
        shared = [torch.minimum(row, weights[num_queries:]).sum(1)[None] for row in weights[:num_queries]]
        together = torch.cat([distances[:0, num_queries:], *shared])  # (Q, G)
        jaccard = 1 - together / (2 - together)
        return -((1 - lambda_value) * jaccard + lambda_value * distances[:num_queries, num_queries:])


def reciprocal(order: Tensor) -> Tensor:
    """Which items (N, N) are among each other's nearest (N, k)."""
    near = torch.zeros(len(order), len(order), dtype=torch.bool, device=order.device).scatter_(1, order, 1)
    return near & near.T


def expanded(members: Tensor, halves: Tensor) -> Tensor:
    """Neighbourhoods (N, N) and those halves (N, N) of their members that lie in them by more than two thirds."""
    inside = members.float() @ halves.float().T  # (N, N) how many of a member's half lie in the neighbourhood
    taken = members & (inside > 2 / 3 * halves.sum(1))
    return members | (taken.float() @ halves.float() > 0)


def score_similarities(
    similarities: Tensor,
    labels: Tensor,
    gallery_labels: Tensor,
    scores: tuple[str, ...] = ("recall", "map"),
    ks: tuple[int, ...] = (1, 2, 4, 8),
) -> dict[str, Tensor]:
    """Mean scores of `RetrievalScores` from a whole matrix of similarities (Q, G), such as a re-ranked one.

    Args:
        similarities: (Q, G); minus infinity takes an item out of a query's ranking: itself, say.
        labels: (Q,) of the queries.
        gallery_labels: (G,).
        scores: which.
        ks: cut-offs.

    Raises:
        ValueError: for unknown scores, NaN, labels that are no integers (Q,) and (G,), lists or arrays, and if no query
            has anything to find.

    >>> similarities = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.3, 0.7]])
    >>> score_similarities(similarities, torch.tensor([1, 2]), torch.tensor([1, 2, 2]), ("recall",), (1,))
    {'recall@1': tensor(1.)}
    """
    names, cuts = check_scores(scores, ks)
    check_tensors(similarities=similarities)
    if similarities.ndim != 2 or bool(similarities.isnan().any()):
        raise ValueError(f"similarities must be of shape (Q, G), without NaN, got {tuple(similarities.shape)}.")
    check_integers(len(similarities), labels=labels)
    check_integers(similarities.shape[1], gallery_labels=gallery_labels)
    relevant = (labels[:, None] == gallery_labels) & (similarities > -torch.inf)  # (Q, G)
    queries = relevant.any(1).nonzero().squeeze(1)
    if len(queries) == 0:
        raise ValueError("No query has an item of its class in the gallery.")
    found = []
    for number, (row, right) in enumerate(zip(similarities[queries], relevant[queries], strict=True)):
        wrong = row[~right].sort().values
        best = row[right].sort(descending=True)
        place = torch.arange(len(best.values), device=row.device)
        ranks = len(wrong) - torch.searchsorted(wrong, best.values) + place + 1  # ties count against the query
        items = right.nonzero().squeeze(1)[best.indices]
        found.append((ranks, torch.full_like(place, number), place, items))
    ranks, query, place, items = (torch.cat(parts) for parts in zip(*found, strict=True))
    matches = RelevantRanks(queries, relevant[queries].sum(1), ranks, query, place, items)
    return {name: values.mean().float() for name, values in score(matches, names, cuts).items()}
