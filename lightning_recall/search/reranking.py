"""k-reciprocal re-ranking."""

import torch
from torch import Tensor

from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.inputs import check_matrices
from lightning_recall.search.neighbors import nearest
from lightning_recall.search.ranks import full_precision


def k_reciprocal_similarities(
    queries: Tensor, gallery: Tensor, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> Tensor:
    """Combines the Jaccard similarity of k-reciprocal neighbourhoods with the original similarity (Q, G).

    d* = (1 - lambda) d_J + lambda d, with d_J the Jaccard distance of the neighbourhoods and d = 2 - 2 cos, normalised
    by each query's maximum. Returns -d*. Neighbours are weighted by exp(-d). For each member of a neighbourhood,
    its k1/2-reciprocal neighbours are added if more than two thirds of them are in the neighbourhood. Then the weights
    are averaged over the k2 nearest items. Memory and time grow with (Q + G)^2: suitable for up to tens of thousands of
    items.

    Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, section
    3; k1, k2 and lambda as in the paper.

    Args:
        queries: query embeddings (Q, D).
        gallery: gallery embeddings (G, D).
        k1: number of nearest items in a neighbourhood, at least 1.
        k2: number of neighbours used for local query expansion, 1 to `k1`.
        lambda_value: weight of the original distance, 0 to 1.

    Raises:
        ValueError: if k1, k2 or lambda_value is out of range, if there are fewer than k1 + 1 items, or if embeddings
            are not finite floating-point matrices with the same D.
    """
    check_matrices(queries=queries, gallery=gallery)
    both = torch.cat([queries, gallery])  # (N, D), N = Q + G
    if not (1 <= k2 <= k1 < len(both) and 0 <= lambda_value <= 1):
        raise ValueError(
            f"k_reciprocal_similarities needs 1 <= k2 <= k1 < {len(both)}, the number of items, and "
            f"0 <= lambda_value <= 1, got k1 = {k1}, k2 = {k2} and lambda_value = {lambda_value}."
        )
    with full_precision(both.device):
        embeddings = EmbeddingBlocks(both, device=both.device)
        unit = embeddings.block(0, len(embeddings))  # (N, D)
        distances = (2 - 2 * unit @ unit.T).clamp_(min=0)  # (N, N)
        distances /= distances.amax(1, keepdim=True).clamp(min=1e-12)
        neighbors = nearest(embeddings, embeddings, k1 + 1)[1]  # (N, k1 + 1), includes the item itself
        is_member = _expand(_reciprocal(neighbors), _reciprocal(neighbors[:, : round(k1 / 2) + 1]))  # (N, N)
        weights = torch.exp(-distances) * is_member
        weights /= weights.sum(1, keepdim=True)
        if k2 > 1:
            weights = torch.stack([weights[neighbor_indices].mean(0) for neighbor_indices in neighbors[:, :k2]])
        num_queries = len(queries)
        overlaps = [
            torch.minimum(query_weights, weights[num_queries:]).sum(1)[None] for query_weights in weights[:num_queries]
        ]
        overlap = torch.cat([distances[:0, num_queries:], *overlaps])  # (Q, G)
        jaccard = 1 - overlap / (2 - overlap)
        return -((1 - lambda_value) * jaccard + lambda_value * distances[:num_queries, num_queries:])


def _reciprocal(neighbors: Tensor) -> Tensor:
    """Mask (N, N) of mutual k-nearest neighbours, given the neighbour indices (N, k)."""
    size, device = len(neighbors), neighbors.device
    is_near = torch.zeros(size, size, dtype=torch.bool, device=device).scatter_(1, neighbors, 1)
    return is_near & is_near.T


def _expand(neighborhoods: Tensor, half_neighborhoods: Tensor) -> Tensor:
    """Adds each member's k1/2-reciprocal neighbours if more than two thirds of them are in the neighbourhood.

    Args:
        neighborhoods: mask (N, N) of the k1-reciprocal neighbours.
        half_neighborhoods: mask (N, N) of the k1/2-reciprocal neighbours.
    """
    num_inside = neighborhoods.float() @ half_neighborhoods.float().T  # (N, N)
    is_added = neighborhoods & (num_inside > 2 / 3 * half_neighborhoods.sum(1))
    return neighborhoods | (is_added.float() @ half_neighborhoods.float() > 0)
