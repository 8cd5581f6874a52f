"""Alpha query expansion."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.inputs import check_matrices
from lightning_recall.search.neighbors import nearest

CHUNK_SIZE = 512  # queries expanded at a time


def expand_queries(queries: Tensor, gallery: Tensor, k: int = 10, alpha: float = 3.0) -> Tensor:
    """Adds to each query its k nearest items, weighted by their similarity to the power alpha.

    q' = q + sum over the k nearest items z of max(s_qz, 0)^alpha z, scaled to unit length. alpha = 0 gives equal
    weights: average query expansion. Expanding the gallery by itself, `expand_queries(gallery, gallery, ...)`, is
    database-side augmentation.

    Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019
    (arXiv 1711.02512).

    Args:
        queries: query embeddings (Q, D).
        gallery: gallery embeddings (G, D).
        k: number of neighbours, 1 to G.
        alpha: exponent of the similarity weights, at least 0.

    Returns:
        Expanded queries (Q, D) of unit length. To evaluate them, pass them to `RetrievalScores.update` with
        is_gallery=False and the gallery with is_query=False. If the queries are also in the gallery, pass a unique
        group per item to exclude self-matches.

    Raises:
        ValueError: if k or alpha is out of range, or the arguments are not floating-point matrices with the same D.

    >>> queries, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
    >>> expand_queries(queries, gallery, k=1, alpha=1.0)
    tensor([[0.9430, 0.3328]])
    """
    check_matrices(queries=queries, gallery=gallery)
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}.")
    query_blocks, gallery_blocks = (
        EmbeddingBlocks(embeddings, device=queries.device) for embeddings in (queries, gallery)
    )
    similarities, items = nearest(query_blocks, gallery_blocks, k)  # (Q, k)
    expanded = [queries.double()[:0]]
    for start in range(0, len(queries), CHUNK_SIZE):
        chunk = slice(start, start + CHUNK_SIZE)
        neighbors = gallery_blocks.select(items[chunk].flatten()).view(*items[chunk].shape, -1)  # (q, k, D)
        weights = similarities[chunk].double().clamp(min=0) ** alpha
        query_embeddings = query_blocks.select(torch.arange(len(queries))[chunk])  # (q, D)
        expanded.append(query_embeddings + torch.einsum("qk,qkd->qd", weights, neighbors))
    return F.normalize(torch.cat(expanded), dim=1).to(queries.dtype)
