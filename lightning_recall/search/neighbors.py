"""The nearest items of each query, computed in blocks."""

import torch
from torch import Tensor

from lightning_recall.checks import check_finite, check_integer
from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.ranks import block_shape, full_precision


def nearest(queries: EmbeddingBlocks, gallery: EmbeddingBlocks, k: int) -> tuple[Tensor, Tensor]:
    """Similarities (Q, k) in float32, in descending order, and gallery indices (Q, k) of each query's k nearest items.

    Holds one block of similarities in memory. The order of ties is undefined.

    Args:
        queries: Q query embeddings.
        gallery: G gallery embeddings.
        k: number of neighbours, 1 to G.

    Raises:
        ValueError: if k is out of range, an argument is not an `EmbeddingBlocks`, the dimensions differ, or embeddings
            are not finite.

    >>> gallery = EmbeddingBlocks(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
    >>> nearest(EmbeddingBlocks(torch.tensor([[0.0, 2.0]])), gallery, 2)
    (tensor([[1.0000, 0.8000]]), tensor([[2, 1]]))
    """
    _check(queries, gallery, k)
    queries_per_block, items_per_block = block_shape(queries.device)
    device = queries.device
    blocks = [(torch.empty(0, k, device=device), torch.empty(0, k, dtype=torch.int64, device=device))]
    with full_precision(device):
        for start in range(0, len(queries), queries_per_block):
            query_block = queries.block(start, min(start + queries_per_block, len(queries)))  # (q, D)
            best = torch.empty(len(query_block), 0, device=device)
            items = torch.empty(len(query_block), 0, dtype=torch.int64, device=device)
            for first in range(0, len(gallery), items_per_block):
                similarities = (
                    query_block @ gallery.block(first, min(first + items_per_block, len(gallery))).T
                )  # (q, g)
                top = similarities.topk(min(k, similarities.shape[1]), dim=1)
                values, candidates = torch.cat([best, top.values], 1), torch.cat([items, top.indices + first], 1)
                kept = values.topk(min(k, values.shape[1]), dim=1)
                best, items = kept.values, candidates.gather(1, kept.indices)
            blocks.append((best, items))
    values, items = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    check_finite(values)
    return values, items


def _check(queries: EmbeddingBlocks, gallery: EmbeddingBlocks, k: int) -> None:
    """Raises ValueError for invalid arguments of `nearest`."""
    for blocks in (queries, gallery):
        if not isinstance(blocks, EmbeddingBlocks):
            raise ValueError(
                f"queries and gallery must be EmbeddingBlocks, got {type(blocks).__name__}: wrap them, "
                "nearest(EmbeddingBlocks(queries), EmbeddingBlocks(gallery), k)."
            )
    if queries.dim != gallery.dim and len(queries):
        raise ValueError(f"queries have dimension {queries.dim}, but the gallery has dimension {gallery.dim}.")
    check_integer("k", k, 1)
    if k > len(gallery):
        raise ValueError(f"k must be at most {len(gallery)}, the size of the gallery, got {k}.")
