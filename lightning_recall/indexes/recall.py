"""How many of the nearest neighbours an approximate index finds."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.indexes.vector_index import VectorIndex
from lightning_recall.search import EmbeddingBlocks, nearest

TOLERANCE = 1e-5
"""difference of similarities, rounded to float32, within which neighbours count as equally near"""


class IndexRecall(NamedTuple):
    """Recall of an index against exact search.

    recall: fraction of the k nearest items that the index finds, averaged over the queries, in [0, 1].
    k: number of neighbours.
    num_queries: number of items that were searched.
    num_items: number of items in the index at that time.
    """

    recall: float
    k: int
    num_queries: int
    num_items: int


def measure_recall(
    vectors: VectorIndex, embeddings: Tensor, k: int = 10, num_queries: int = 1000, seed: int = 0
) -> IndexRecall | None:
    """Searches a random sample of the items; a query itself does not count as its neighbour.

    An item counts as found if its exact similarity reaches that of the k-th nearest item, so that items at the same
    distance, such as copies, are interchangeable.

    Args:
        vectors: the index.
        embeddings: (N, D) of its items, in the order of its rows.
        k: number of neighbours; at most N - 1 are compared.
        num_queries: items in the sample, at most.
        seed: seed of the sample.

    Returns:
        The recall; None for a single item.
    """
    num_items = len(embeddings)
    k = min(k, num_items - 1)
    if k < 1:
        return None
    sample = torch.randperm(num_items, generator=torch.Generator().manual_seed(seed))[:num_queries]  # (Q,)
    blocks = EmbeddingBlocks(embeddings)
    queries = blocks.select(sample)  # (Q, D) float64
    values, neighbors = nearest(EmbeddingBlocks(queries), blocks, k + 1)
    others = without_self(neighbors, sample, k)
    required = values.gather(1, others).amin(1, keepdim=True)  # (Q, 1) similarity of the k-th nearest
    _, rows = vectors.search(queries, k + 1)
    rows = rows.gather(1, without_self(rows, sample, k))  # (Q, k)
    found = [blocks.select(items.clamp(min=0)) for items in rows.T]  # k of (Q, D)
    similarities = torch.stack([(queries * items).sum(1) for items in found], dim=1)
    is_found = (similarities >= required - TOLERANCE) & (rows >= 0)
    return IndexRecall(float(is_found.double().mean()), k, len(sample), num_items)


def without_self(rows: Tensor, queries: Tensor, k: int) -> Tensor:
    """Columns (Q, k) of the first k neighbours that are not the query.

    Args:
        rows: (Q, k + 1) neighbours.
        queries: (Q,) row of each query.
        k: number of columns.
    """
    is_self = (rows == queries[:, None]).to(torch.int8)
    return is_self.argsort(dim=1, stable=True)[:, :k]
