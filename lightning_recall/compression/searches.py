"""Searches of stored embeddings: exact in torch or faiss, and binary candidates that are rescored."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_recall.compression.approximate import exact_index, has_faiss
from lightning_recall.compression.protocol import ListSearch
from lightning_recall.compression.quantization import pack_binary
from lightning_recall.compression.variants import BINARY, Variant
from lightning_recall.search import EmbeddingBlocks, nearest

RESCORED_AT_A_TIME = 16  # queries: 20 MB of candidates in float32, at 240 of 1,280 dimensions each


@dataclass(frozen=True)
class TorchSearch(ListSearch):
    """Exact search of blocks that are decoded to float32.

    queries: what each of the N items is as a query.
    items: the gallery.
    """

    queries: EmbeddingBlocks
    items: EmbeddingBlocks

    def candidates(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Similarities (q, k), descending, and gallery positions (q, k) of the nearest items of queries (q,)."""
        return nearest(self.queries.reordered(queries), self.items, k)


@dataclass(frozen=True)
class FaissSearch(ListSearch):
    """Search of a faiss index.

    index: the index of the gallery; of packed bits if `is_binary`.
    queries: what each of the N items is as a query.
    """

    index: Any
    queries: EmbeddingBlocks
    is_binary: bool = False
    engine = "faiss"

    def candidates(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Similarities (q, k), descending, and gallery positions (q, k) for queries (q,); -1 is no item."""
        vectors = self.queries.select(queries).float()
        if not self.is_binary:
            similarities, positions = self.index.search(vectors.numpy(), k)
            return torch.from_numpy(similarities), torch.from_numpy(positions)
        distances, positions = self.index.search(pack_binary(vectors).numpy(), k)
        return -torch.from_numpy(distances).float(), torch.from_numpy(positions)


@dataclass(frozen=True)
class RescoredSearch(ListSearch):
    """Candidates of a coarse search, ordered by a finer comparison.

    coarse: the search for candidates.
    queries: what each of the N items is as a query of the finer comparison.
    codes: (G, D) float16, the gallery of the finer comparison: signs or int8 codes, which float16 holds exactly.
    oversampling: candidates for each item that is asked for.
    """

    coarse: ListSearch
    queries: EmbeddingBlocks
    codes: Tensor
    oversampling: int
    engine: str

    def candidates(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The same as that of the coarse search."""
        return self.coarse.candidates(queries, k)

    def rescore(self, queries: Tensor, positions: Tensor, similarities: Tensor) -> Tensor:
        """Dot products (q, c) of queries (q,) and the items at gallery positions (q, c), in float32."""
        parts = []
        for query, position in zip(*(torch.split(x, RESCORED_AT_A_TIME) for x in (queries, positions)), strict=True):
            items = self.codes[position].float()  # (b, c, D)
            parts.append((items @ self.queries.select(query).float()[:, :, None]).squeeze(2))
        return torch.cat(parts)


def exact_search(variant: Variant, gallery: Tensor) -> ListSearch:
    """The fastest exact search at hand: that of faiss if it is installed, else of torch.

    Args:
        variant: stored embeddings of N items.
        gallery: (G,) the items to search.
    """
    items = in_order(variant.items, gallery)
    if not has_faiss():
        return TorchSearch(variant.queries, items)
    return FaissSearch(exact_index(items, variant.storage), variant.queries, variant.storage == BINARY)


def in_order(embeddings: EmbeddingBlocks, indices: Tensor) -> EmbeddingBlocks:
    """The embeddings at ascending indices (n,); the same object if these are all."""
    return embeddings if len(indices) == len(embeddings) else embeddings.reordered(indices)
