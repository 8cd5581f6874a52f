"""Exact ranks by blockwise search: counts the items ranked ahead of each relevant one.

Similarities are computed in float32, one block at a time. If a similarity differs from a relevant item's by less than
the rounding error of float32, the two are compared in float64. So the ranks are those of float64, for any block size,
device and number of processes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.thresholds import BlockThresholds, ThresholdItemPairs

QUERIES_PER_BLOCK, ITEMS_PER_BLOCK = 512, 4096  # block size of the similarity matrix on CPU: 8 MiB
GPU_QUERIES_PER_BLOCK, GPU_ITEMS_PER_BLOCK = 2048, 32768  # on GPU: 256 MiB; smaller blocks are launch-bound
SQUARE_BLOCK, GPU_SQUARE_BLOCK = 1024, 8192  # side of a block if the queries are the gallery: 4 MiB, 256 MiB
SIMILARITIES_PER_COUNT = 2**18  # on CPU: 1 MiB, which stays in the cache while all thresholds are compared with it
FLOAT64_PAIRS = 2**13  # pairs that are collected until they are compared in float64
FLOAT64_ROWS = 2**9  # embeddings in float64 at a time: 2 MiB at D = 512; more do not fit in the cache


class QueryItemPairs(NamedTuple):
    """Queries (P,) and gallery items (P,), by index, ordered by query."""

    query: Tensor
    item: Tensor


def block_shape(device: torch.device) -> tuple[int, int]:
    """Number of queries and of gallery items in one block of the similarity matrix."""
    return (
        (QUERIES_PER_BLOCK, ITEMS_PER_BLOCK) if device.type == "cpu" else (GPU_QUERIES_PER_BLOCK, GPU_ITEMS_PER_BLOCK)
    )


def square_block_shape(device: torch.device) -> tuple[int, int]:
    """The same if the queries are the gallery."""
    size = SQUARE_BLOCK if device.type == "cpu" else GPU_SQUARE_BLOCK
    return size, size


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

    The similarity of a relevant item is a threshold.

    Args:
        values: (P,) thresholds in float64, query by query, descending within a query.
        counts: (Q,) number of thresholds per query.
        order: (q,) the queries to search, in this order; blocks of them are counted together.
        dim: embedding dimension D.
        block_shape: number of queries and of items in a block.
    """

    def __init__(self, values: Tensor, counts: Tensor, order: Tensor, dim: int, block_shape: tuple[int, int]) -> None:
        # The standard error of a float32 dot product of unit vectors is about 0.23 sqrt(D) ulp. `tolerance` allows 8 of
        # them, plus the rounding of the inputs. Differences up to `tie_tolerance` in float64 are ties.
        self.tolerance = (2 * dim**0.5 + 4) * 2.0**-24
        self.tie_tolerance = dim * 2.0**-52
        self.values = values
        self.query_of = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)  # (P,)
        self.block_shape = block_shape
        starts = counts.cumsum(0) - counts
        self.blocks = [
            BlockThresholds(values, starts[queries], counts[queries], self.tolerance)
            for queries in torch.split(order, block_shape[0])
            if len(queries)
        ]
        self.unresolved: list[ThresholdItemPairs] = []  # to compare in float64
        self.num_unresolved = 0
        self.resolved_ahead = torch.zeros(len(values), dtype=torch.int64, device=values.device)  # (P,)
        size = SIMILARITIES_PER_COUNT if values.device.type == "cpu" else math.prod(block_shape)
        self.buffer = torch.empty(max(size, block_shape[1]), device=values.device)

    def num_ahead(self) -> Tensor:
        """The counts (P,) so far, without unresolved pairs."""
        total = torch.zeros(len(self.values) + 1, dtype=torch.int64, device=self.values.device)
        for block in self.blocks:
            total[block.index] = block.num_above
        return total[:-1] + self.resolved_ahead

    def count(self, similarities: Tensor, query_block: int, first_item: int, item_block: int | None = None) -> None:
        """Counts the items ahead within a block of similarities.

        Args:
            similarities: (q, g) float32, of the queries of a block; minus infinity for excluded pairs.
            query_block: position of the block.
            first_item: index of the first item.
            item_block: if given, the items are this block of queries, and the queries are items: counts both ways.
        """
        first_query = query_block * self.block_shape[0]
        num_queries = max(1, len(self.buffer) // similarities.shape[1])  # compared at a time
        for start in range(0, len(similarities), num_queries):
            part = similarities[start : start + num_queries]  # (b, g)
            buffer = self.buffer[: part.numel()].view(part.shape)
            self._keep(self.blocks[query_block].count(part, buffer, start, first_item))
            if item_block is not None:
                self._keep(self.blocks[item_block].count(part.T, buffer.T, 0, first_query + start))

    def _keep(self, pairs: ThresholdItemPairs) -> None:
        """Adds unresolved pairs."""
        if len(pairs.item) == 0:
            return  # kept objects between the buffers of each block would fragment the heap, by 1.5 MiB a block
        self.unresolved.append(pairs)
        self.num_unresolved += len(pairs.item)

    def resolve_in_float64(self, queries: EmbeddingBlocks, gallery: EmbeddingBlocks, min_pairs: int = 1) -> None:
        """Compares unresolved pairs in float64 if there are `min_pairs` or more."""
        if self.num_unresolved < min_pairs:
            return
        thresholds, items = (torch.cat(parts) for parts in zip(*self.unresolved, strict=True))
        self.unresolved, self.num_unresolved = [], 0
        # several thresholds of a query often have the same unresolved items: compute each (query, item) pair once
        pairs, pair_of = torch.unique(self.query_of[thresholds] * len(gallery) + items, return_inverse=True)
        exact = [
            (queries.select(part // len(gallery)) * gallery.select(part % len(gallery))).sum(1)
            for part in torch.split(pairs, FLOAT64_ROWS)
        ]
        is_ahead = torch.cat(exact)[pair_of] >= self.values[thresholds] - self.tie_tolerance
        self.resolved_ahead.index_add_(0, thresholds, is_ahead.long())
