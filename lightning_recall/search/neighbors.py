"""The nearest items of each query, found blockwise."""

import torch
from torch import Tensor

from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.ranks import block_shape, full_precision


def nearest(queries: EmbeddingBlocks, gallery: EmbeddingBlocks, k: int) -> tuple[Tensor, Tensor]:
    """Similarities (Q, k) in fp32, in descending order, and rows (Q, k) of the k nearest items of each query.

    No more than a block of similarities is held at a time. Of equally similar items any may come first.

    Args:
        queries: Q rows.
        gallery: G rows.
        k: how many, from 1 to G.

    Raises:
        ValueError: for another k, what is no `EmbeddingBlocks`, different widths, and embeddings with NaN or infinity.
    """
    for side in (queries, gallery):
        if not isinstance(side, EmbeddingBlocks):
            raise ValueError(
                f"queries and gallery must be EmbeddingBlocks, got {type(side).__name__}: give nearest(EmbeddingBlocks(queries), "
                "EmbeddingBlocks(gallery), k), where lightning_recall.search.embedding_blocks.EmbeddingBlocks takes a tensor or array (N, D)."
            )
    if queries.dim != gallery.dim and len(queries):
        raise ValueError(f"queries are of width {queries.dim} and the gallery of width {gallery.dim}.")
    if isinstance(k, bool) or not hasattr(k, "__index__") or not 1 <= k <= len(gallery):
        raise ValueError(f"k must be from 1 to the {len(gallery)} items of the gallery, got {k}.")
    query_rows, gallery_rows = block_shape(queries.device)
    device = queries.device
    found = [(torch.empty(0, k, device=device), torch.empty(0, k, dtype=torch.int64, device=device))]
    with full_precision(queries.device):
        for start in range(0, len(queries), query_rows):
            own = queries.block(start, min(start + query_rows, len(queries)))  # (q, D)
            best = torch.empty(len(own), 0, device=own.device)
            items = torch.empty(len(own), 0, dtype=torch.int64, device=own.device)
            for first in range(0, len(gallery), gallery_rows):
                similarities = own @ gallery.block(first, min(first + gallery_rows, len(gallery))).T  # (q, g)
                top = similarities.topk(min(k, similarities.shape[1]), dim=1)
                values, rows = torch.cat([best, top.values], 1), torch.cat([items, top.indices + first], 1)
                kept = values.topk(min(k, values.shape[1]), dim=1)
                best, items = kept.values, rows.gather(1, kept.indices)
            found.append((best, items))
    values, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    if bool(values.isnan().any()):
        raise ValueError("embeddings hold NaN or infinity: the network has diverged or its input is broken.")
    return values, rows
