"""Per-query search results."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.search.embedding_blocks import BLOCK_SIZE, EmbeddingBlocks
from lightning_recall.search.ranks import full_precision


class SearchResult(NamedTuple):
    """Per-query search results. `gallery` and `queries` are indices into the N items.

    embeddings: (N, D), without duplicates, as passed to `update`; in one or more pieces (n, D).
    labels: (N,); None if relevance is given by `relevant`.
    indices: (N,) positions of the items in their data set, ascending; None if they were not passed.
    gallery: (G,) the gallery items.
    queries: (Q,) the queries with a relevant item.
    first_ranks: (Q,) int64 rank, starting at 1, of each query's first relevant item.
    scores: per query, {"recall@1": (Q,) float64, ...}; NaN if a score is not defined for a query.
    normalize: True: similarities are cosines. False: dot products.
    relevant: query -> its relevant items (P,), if they are not defined by labels.
    groups: (N,); a query ignores items of the same class and group. None: nothing is ignored.
    """

    embeddings: Tensor | Sequence[Tensor]
    labels: Tensor | None
    indices: Tensor | None
    gallery: Tensor
    queries: Tensor
    first_ranks: Tensor
    scores: Mapping[str, Tensor]
    normalize: bool
    relevant: Mapping[int, Tensor] | None = None
    groups: Tensor | None = None

    def means(self) -> dict[str, Tensor]:
        """The scores, averaged over the queries."""
        return {name: values.nanmean().float() for name, values in self.scores.items()}

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Similarities and items (q, k) of the k nearest gallery items of queries (q,).

        k is capped at the gallery size. Meant for plots of few queries: computes the similarities to the whole
        gallery at once, in float32.
        """
        similarities = self.similarities(queries, self.gallery)
        is_ignored = queries[:, None] == self.gallery
        if self.groups is not None and self.labels is not None:
            same_group = self.groups[queries, None] == self.groups[self.gallery]
            is_ignored |= same_group & self.is_relevant(queries, self.gallery[None])
        counts = (~is_ignored).sum(1)
        k = min(k, int(counts.min()) if len(counts) else 0)
        top = similarities.masked_fill_(is_ignored, -torch.inf).topk(k)
        return top.values, self.gallery[top.indices]

    def similarities(self, queries: Tensor, items: Tensor) -> Tensor:
        """Similarities (q, g) in float32 between queries (q,) and items (g,)."""
        embeddings = EmbeddingBlocks(self.embeddings, self.normalize, self.queries.device)
        query_embeddings = embeddings.select(queries).float()
        starts = range(0, len(embeddings), BLOCK_SIZE)
        with full_precision(self.queries.device):
            parts = [
                query_embeddings @ embeddings.block(start, min(start + BLOCK_SIZE, len(embeddings))).T
                for start in starts
            ]
        return torch.cat(parts, dim=1)[:, items] * (embeddings.scale or 1) ** 2

    def is_relevant(self, queries: Tensor, items: Tensor) -> Tensor:
        """Whether items (q, k) are relevant to queries (q,): (q, k) bool."""
        if self.relevant is not None:
            is_relevant = [
                torch.isin(query_items, self.relevant[int(query)].to(query_items.device))
                for query, query_items in zip(queries, items, strict=True)
            ]
            return torch.stack(is_relevant)
        assert self.labels is not None  # labels are set whenever `relevant` is None
        return self.labels[items] == self.labels[queries, None]
