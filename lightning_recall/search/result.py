"""What a search found, for those who look closer than the mean."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.search.embedding_blocks import BLOCK_ROWS, EmbeddingBlocks
from lightning_recall.search.ranks import full_precision


class SearchResult(NamedTuple):
    """What a search found.

    embeddings: all N items as they were given, each once, in one or more pieces (n, D).
    labels: (N,); None if they do not tell what is right, but `relevant` does.
    indices: (N,) of the items in their data set, ascending; None if they were not given.
    gallery: (G,) rows that were searched.
    queries: (Q,) rows that had something to find.
    first_ranks: (Q,) int64 from 1, where each query found its first relevant item.
    scores: of each query, {"recall@1": (Q,) float64, ...}; NaN where a query has no such score.
    normalize: whether similarities are cosines; else dot products.
    relevant: rows (P,) that are right for a query's row, where labels do not tell.
    groups: (N,); a query passes over items of its own class and group; None: there are none.
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
        """The scores, on average over the queries."""
        return {name: values.nanmean().float() for name, values in self.scores.items()}

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Similarities (q, k) and rows (q, k) of what some queries' rows (q,) find nearest; fewer in a small gallery.

        For pictures: in fp32, all of the gallery at once.
        """
        similarities = self.similarities(queries, self.gallery)
        own = queries[:, None] == self.gallery
        if self.groups is not None and self.labels is not None:
            own |= (self.groups[queries, None] == self.groups[self.gallery]) & self.is_relevant(
                queries, self.gallery[None]
            )
        counts = (~own).sum(1)
        top = similarities.masked_fill_(own, -torch.inf).topk(min(k, int(counts.min()) if len(counts) else 0))
        return top.values, self.gallery[top.indices]

    def similarities(self, queries: Tensor, items: Tensor) -> Tensor:
        """Similarities (q, g) in fp32 of rows (q,) and rows (g,)."""
        rows = EmbeddingBlocks(self.embeddings, self.normalize, self.queries.device)
        own = rows.rows(queries).float()
        starts = range(0, len(rows), BLOCK_ROWS)
        with full_precision(self.queries.device):
            parts = [own @ rows.block(start, min(start + BLOCK_ROWS, len(rows))).T for start in starts]
        everything = torch.cat(parts, dim=1)
        return everything[:, items] * (rows.scale or 1) ** 2

    def is_relevant(self, queries: Tensor, items: Tensor) -> Tensor:
        """Whether items (q, k) are relevant to queries (q,), all by row: (q, k) bool."""
        if self.relevant is not None:
            told = [
                torch.isin(row, self.relevant[int(query)].to(row.device))
                for query, row in zip(queries, items, strict=True)
            ]
            return torch.stack(told)
        assert self.labels is not None  # or `relevant` tells
        return self.labels[items] == self.labels[queries, None]
