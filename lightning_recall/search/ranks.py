"""Exact ranks by blockwise search: counts the items ranked ahead of each relevant one.

Similarities are computed in float32, one block at a time. If a similarity differs from a relevant item's by less than
the rounding error of float32, the two are compared in float64. So the ranks are those of float64, for any block size,
device and number of processes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.tensors import arange_within_groups

QUERIES_PER_BLOCK, ITEMS_PER_BLOCK = 512, 4096  # block size of the similarity matrix on CPU: 8 MiB, fits in cache
GPU_QUERIES_PER_BLOCK, GPU_ITEMS_PER_BLOCK = 2048, 32768  # on GPU: 256 MiB; smaller blocks are launch-bound
FLOAT64_PAIRS = 2**13  # pairs compared in float64 at a time: 64 MiB at D = 512
# above this many relevant items per query, sorting a block is faster than counting for each relevant item separately
MANY_THRESHOLDS = 40


class QueryItemPairs(NamedTuple):
    """Queries (P,) and gallery items (P,), by index, ordered by query."""

    query: Tensor
    item: Tensor


class ThresholdItemPairs(NamedTuple):
    """Thresholds (P,) of a `RankCounter` and gallery items (P,), by index."""

    threshold: Tensor
    item: Tensor


def block_shape(device: torch.device) -> tuple[int, int]:
    """Number of queries and of gallery items in one block of the similarity matrix."""
    return (
        (QUERIES_PER_BLOCK, ITEMS_PER_BLOCK) if device.type == "cpu" else (GPU_QUERIES_PER_BLOCK, GPU_ITEMS_PER_BLOCK)
    )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in true float32: no autocast, no TF32, no bf16; restores the previous setting on exit."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class RankCounter:
    """Counts, for each relevant item, the gallery items whose similarity to the query is at least as high.

    The similarity of a relevant item is a threshold; `num_ahead` (P,) holds the counts so far.

    Args:
        threshold_values: (P,) in float64, query by query, descending within a query.
        counts: (Q,) number of thresholds per query.
        dim: embedding dimension D.
    """

    def __init__(self, threshold_values: Tensor, counts: Tensor, dim: int) -> None:
        self.threshold_values = threshold_values
        self.counts = counts
        self.starts = counts.cumsum(0) - counts  # (Q,)
        self.num_ahead = torch.zeros(len(threshold_values), dtype=torch.int64, device=threshold_values.device)  # (P,)
        # The standard error of a float32 dot product of unit vectors is about 0.23 sqrt(D) ulp. `tolerance` allows 8 of
        # them, plus the rounding of the inputs. Differences up to `tie_tolerance` in float64 are ties.
        self.tolerance = (2 * dim**0.5 + 4) * 2.0**-24
        self.tie_tolerance = dim * 2.0**-52
        self.unresolved: list[ThresholdItemPairs] = []  # to compare in float64
        self.buffer = torch.empty(math.prod(block_shape(threshold_values.device)), device=threshold_values.device)

    def count(self, queries: Tensor, similarities: Tensor, first_item: int) -> None:
        """Counts the items ahead within a block of similarities.

        Args:
            queries: query indices (q,), sorted by number of thresholds, descending.
            similarities: (q, g) float32; minus infinity for excluded items.
            first_item: index of the block's first item.
        """
        counts = self.counts[queries]
        if len(queries) and float(counts.double().mean()) > MANY_THRESHOLDS:
            self._count_sorted(queries, similarities, first_item)
            return
        buffer = _view(self.buffer, similarities.shape)
        for position in range(int(counts.max()) if len(queries) else 0):
            num_queries = int((counts > position).sum())  # with more than `position` thresholds
            threshold_indices = self.starts[queries[:num_queries]] + position  # (q,)
            low, high = self._limits(threshold_indices)
            block, out = similarities[:num_queries], buffer[:num_queries]
            # a float buffer is four times faster than a bool one
            above = torch.gt(block, high[:, None], out=out).sum(1)
            not_below = torch.ge(block, low[:, None], out=out).sum(1)
            self.num_ahead[threshold_indices] += above.long()
            unresolved = (above != not_below).nonzero().squeeze(1)
            if len(unresolved):
                values = block[unresolved]
                is_close = (values >= low[unresolved, None]) & (values <= high[unresolved, None])
                query, item = is_close.nonzero().unbind(1)
                self.unresolved.append(ThresholdItemPairs(threshold_indices[unresolved[query]], item + first_item))

    def _count_sorted(self, queries: Tensor, similarities: Tensor, first_item: int) -> None:
        """Same as `count`, but sorts each block: faster for queries with many thresholds."""
        ordered, items = similarities.sort(1)
        counts = self.counts[queries]
        position = torch.arange(int(counts.max()), device=queries.device)
        is_valid = position < counts[:, None]  # (q, J), False for padding
        threshold_indices = (self.starts[queries, None] + position).where(is_valid, 0)
        low, high = self._limits(threshold_indices)
        first = torch.searchsorted(ordered, low)  # (q, J)
        last = torch.searchsorted(ordered, high, right=True)
        self.num_ahead[threshold_indices[is_valid]] += (ordered.shape[1] - last)[is_valid]
        query, column = (is_valid & (last > first)).nonzero().unbind(1)
        num_close = (last - first)[query, column]
        start = first[query, column].repeat_interleave(num_close)
        item = items[query.repeat_interleave(num_close), start + arange_within_groups(num_close)]
        self.unresolved.append(
            ThresholdItemPairs(threshold_indices[query, column].repeat_interleave(num_close), item + first_item)
        )

    def _limits(self, threshold_indices: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 similarities below which an item is certainly behind, and above which it is certainly ahead."""
        values = self.threshold_values[threshold_indices]
        return (values - self.tolerance).float(), (values + self.tolerance).float()

    def resolve_in_float64(
        self, queries: EmbeddingBlocks, gallery: EmbeddingBlocks, query_of: Tensor, min_pairs: int = 1
    ) -> None:
        """Compares unresolved pairs in float64 if there are `min_pairs` or more.

        query_of: (P,) query of each threshold.
        """
        if sum(len(pairs.item) for pairs in self.unresolved) < min_pairs:
            return
        threshold_indices, items = (torch.cat(parts) for parts in zip(*self.unresolved, strict=True))
        self.unresolved = []
        # several thresholds of a query often have the same unresolved items: compute each (query, item) pair once
        pairs, pair_of = torch.unique(query_of[threshold_indices] * len(gallery) + items, return_inverse=True)
        exact = [
            (queries.select(part // len(gallery)) * gallery.select(part % len(gallery))).sum(1)
            for part in torch.split(pairs, FLOAT64_PAIRS)
        ]
        is_ahead = torch.cat(exact)[pair_of] >= self.threshold_values[threshold_indices] - self.tie_tolerance
        self.num_ahead.index_add_(0, threshold_indices, is_ahead.long())


class _ExcludedPairs:
    """Pairs that are excluded from a similarity matrix, sorted by block.

    Args:
        query: (P,) positions of the queries in the matrix.
        item: (P,) gallery indices.
        shape: (number of queries, number of items) of the whole matrix.
        device: device of the matrix, which decides the size of a block.
    """

    def __init__(self, query: Tensor, item: Tensor, shape: tuple[int, int], device: torch.device) -> None:
        queries_per_block, items_per_block = block_shape(device)
        self.num_query_blocks = -(-shape[0] // queries_per_block)
        num_blocks = self.num_query_blocks * -(-shape[1] // items_per_block)
        block_of, order = (item // items_per_block * self.num_query_blocks + query // queries_per_block).sort()
        self.query, self.item = query[order] % queries_per_block, item[order] % items_per_block
        self.bounds = torch.searchsorted(block_of, torch.arange(num_blocks + 1, device=device)).tolist()

    def mask(self, similarities: Tensor, query_block: int, item_block: int) -> None:
        """Writes minus infinity to the excluded pairs of one block of similarities (q, g)."""
        inside = slice(*self.bounds[item_block * self.num_query_blocks + query_block :][:2])
        similarities[self.query[inside], self.item[inside]] = -torch.inf


def count_ahead(
    queries: EmbeddingBlocks,
    gallery: EmbeddingBlocks,
    counter: RankCounter,
    excluded: QueryItemPairs,
    query_indices: Tensor,
) -> Iterator[int]:
    """Counts, for each threshold of the given queries, the gallery items that are at least as similar to the query.

    Args:
        queries: Q query embeddings.
        gallery: G gallery embeddings.
        counter: thresholds of all Q queries; updated in place.
        excluded: pairs excluded from the count: relevant and ignored ones.
        query_indices: (q,) the queries that have thresholds.

    Yields:
        The number of similarities computed for each block of the gallery.
    """
    device = query_indices.device
    queries_per_block, items_per_block = block_shape(device)
    query_indices = query_indices[counter.counts[query_indices].argsort(descending=True, stable=True)]
    position_of = torch.full((len(queries),), -1, device=device)  # (Q,), -1 for queries without thresholds
    position_of[query_indices] = torch.arange(len(query_indices), device=device)
    query_embeddings = queries.select(query_indices).float()  # (q, D)
    query_of = torch.arange(len(queries), device=device).repeat_interleave(counter.counts)  # (P,)
    query, item = position_of[excluded.query], excluded.item
    query, item = query[query >= 0], item[query >= 0]
    excluded_pairs = _ExcludedPairs(query, item, (len(query_indices), len(gallery)), device)
    buffer = torch.empty(queries_per_block * items_per_block, device=device)
    for item_block, first in enumerate(range(0, len(gallery), items_per_block)):
        items = gallery.block(first, min(first + items_per_block, len(gallery)))  # (g, D)
        for query_block, part in enumerate(torch.split(query_embeddings, queries_per_block)):
            similarities = _view(buffer, (len(part), len(items)))
            torch.mm(part, items.T, out=similarities)
            excluded_pairs.mask(similarities, query_block, item_block)
            counter.count(query_indices[query_block * queries_per_block :][:queries_per_block], similarities, first)
            counter.resolve_in_float64(queries, gallery, query_of, min_pairs=FLOAT64_PAIRS)
        yield len(query_embeddings) * len(items)
    counter.resolve_in_float64(queries, gallery, query_of)


def _view(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    """Views the start of a buffer as a matrix; allocating one per block would take a third as long as the matmul."""
    return buffer[: shape[0] * shape[1]].view(*shape)
