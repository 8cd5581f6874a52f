"""Searches again with what the first search found: alpha query expansion."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.inputs import check_matrices
from lightning_recall.search.neighbors import nearest


def expand_queries(queries: Tensor, gallery: Tensor, k: int = 10, alpha: float = 3.0) -> Tensor:
    """Adds to each query its k nearest items, weighted by their similarity to the power alpha.

    q' = q + sum over its k nearest z of max(s_qz, 0)^alpha z, scaled to length 1. alpha 0 weighs all alike, which is
    average query expansion. Expanding the gallery by itself, `expand_queries(gallery, gallery, ...)`, is database-side
    augmentation.

    Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", PAMI 2019.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        k: how many neighbours, from 1 to G.
        alpha: from 0.

    Returns:
        (Q, D), of unit length. For the scores, `RetrievalScores.update` takes them with is_query alone and the gallery
        with is_gallery alone; where queries are searched themselves, `groups` of each item keep it from finding itself.

    Raises:
        ValueError: for a k or an alpha outside their range, and what are no floating point tensors of one width.

    >>> queries, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
    >>> expand_queries(queries, gallery, k=1, alpha=1.0)
    tensor([[0.9430, 0.3328]])
    """
    check_matrices(queries=queries, gallery=gallery)
    if alpha < 0:
        raise ValueError(f"alpha must be from 0, got {alpha}.")
    own, searched = (EmbeddingBlocks(rows, device=queries.device) for rows in (queries, gallery))
    similarities, items = nearest(own, searched, k)  # (Q, k)
    expanded = [queries.double()[:0]]
    for start in range(0, len(queries), 512):
        part = slice(start, start + 512)
        neighbors = searched.rows(items[part].flatten()).view(*items[part].shape, -1)  # (q, k, D)
        weights = similarities[part].double().clamp(min=0) ** alpha
        expanded.append(own.rows(torch.arange(len(queries))[part]) + torch.einsum("qk,qkd->qd", weights, neighbors))
    return F.normalize(torch.cat(expanded), dim=1).to(queries.dtype)
