"""The pairs of a query and a gallery item that have the same label, and their similarities."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.ranks import FLOAT64_ROWS, QueryItemPairs
from lightning_recall.tensors import arange_within_groups


class SameLabelPairs(NamedTuple):
    """Queries, class by class, and the gallery slice that holds each query's class.

    queries: (q,) query indices.
    starts: (q,) position in `order` at which the query's class begins.
    counts: (q,) number of gallery items of the query's class.
    order: (G,) gallery indices, sorted by class.
    """

    queries: Tensor
    starts: Tensor
    counts: Tensor
    order: Tensor

    @classmethod
    def of(cls, queries: Tensor, query_labels: Tensor, gallery_labels: Tensor) -> "SameLabelPairs":
        """Finds the pairs of queries (q,). Queries with the same label must be adjacent."""
        ordered, order = gallery_labels.sort(stable=True)
        labels = query_labels[queries]
        starts = torch.searchsorted(ordered, labels)
        return cls(queries, starts, torch.searchsorted(ordered, labels, right=True) - starts, order)

    def part(self, part: slice) -> "SameLabelPairs":
        """The pairs of a slice of the queries."""
        return SameLabelPairs(self.queries[part], self.starts[part], self.counts[part], self.order)

    def pairs(self) -> QueryItemPairs:
        """Each query with all gallery items of its class (P,)."""
        positions = arange_within_groups(self.counts) + self.starts.repeat_interleave(self.counts)
        return QueryItemPairs(self.queries.repeat_interleave(self.counts), self.order[positions])

    def similarities(self, queries: EmbeddingBlocks, gallery: EmbeddingBlocks) -> Tensor:
        """Float64 similarities (P,) of these pairs, in the same order; classes of the same shape are one product."""
        _, num_queries = torch.unique_consecutive(
            self.starts + len(self.order) * (self.counts == 0), return_counts=True
        )
        first_query = num_queries.cumsum(0) - num_queries  # (C,)
        num_items, first_item = self.counts[first_query], self.starts[first_query]
        first_pair = (num_queries * num_items).cumsum(0) - num_queries * num_items
        shapes, shape_of = torch.unique(torch.stack([num_queries, num_items], 1), dim=0, return_inverse=True)
        similarity = torch.empty(int(self.counts.sum()), dtype=torch.float64, device=self.queries.device)
        sizes = torch.bincount(shape_of, minlength=len(shapes)).tolist()
        for (n, g), classes in zip(shapes.tolist(), torch.split(shape_of.argsort(stable=True), sizes), strict=True):
            for part in torch.split(classes, max(1, FLOAT64_ROWS // max(n, g))):  # (c,)
                query = self.queries[_ranges(first_query[part], n)]  # (c, n)
                items = torch.split(_ranges(first_item[part], g), FLOAT64_ROWS, 1)
                values = [torch.bmm(_rows(queries, query), _rows(gallery, self.order[item]).mT) for item in items]
                similarity[_ranges(first_pair[part], n * g)] = torch.cat(values, 2).flatten(1)
        return similarity


def _ranges(starts: Tensor, length: int) -> Tensor:
    """Integers (c, length): a range from each start (c,)."""
    return starts[:, None] + torch.arange(length, device=starts.device)


def _rows(embeddings: EmbeddingBlocks, indices: Tensor) -> Tensor:
    """Embeddings (c, n, D) at indices (c, n), in float64."""
    return embeddings.select(indices.flatten()).view(*indices.shape, embeddings.dim)
