"""Computes the similarity matrix in blocks, and counts the items ahead of each threshold."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.ranks import FLOAT64_PAIRS, QueryItemPairs, RankCounter

BLOCKS_IN_MEMORY = 16  # blocks of queries that are read at a time: 32 MiB at D = 512 on CPU


class Processes(NamedTuple):
    """The processes that share a search.

    rank: number of this process.
    world_size: number of processes.
    total: sums a tensor over the processes.
    """

    rank: int = 0
    world_size: int = 1
    total: Callable[[Tensor], Tensor] = Tensor.clone


ALONE = Processes()


class _ExcludedPairs:
    """Pairs that are excluded from a similarity matrix, sorted by block.

    Args:
        query: (P,) positions of the queries in the matrix.
        item: (P,) gallery indices.
        shape: number of queries and of items of the whole matrix.
        block_shape: number of queries and of items in a block.
    """

    def __init__(self, query: Tensor, item: Tensor, shape: tuple[int, int], block_shape: tuple[int, int]) -> None:
        queries_per_block, items_per_block = block_shape
        self.num_query_blocks = -(-shape[0] // queries_per_block)
        num_blocks = self.num_query_blocks * -(-shape[1] // items_per_block)
        block_of, order = (item // items_per_block * self.num_query_blocks + query // queries_per_block).sort()
        self.query, self.item = query[order] % queries_per_block, item[order] % items_per_block
        self.bounds = torch.searchsorted(block_of, torch.arange(num_blocks + 1, device=query.device)).tolist()

    def mask(self, similarities: Tensor, query_block: int, item_block: int) -> None:
        """Writes minus infinity to the excluded pairs of one block of similarities (q, g)."""
        start, stop = self.bounds[item_block * self.num_query_blocks + query_block :][:2]
        if stop > start:
            similarities[self.query[start:stop], self.item[start:stop]] = -torch.inf


def count_ahead(
    queries: EmbeddingBlocks,
    gallery: EmbeddingBlocks,
    counter: RankCounter,
    excluded: QueryItemPairs,
    order: Tensor,
    processes: Processes | None = None,
) -> Iterator[int]:
    """Counts, for each threshold of the given queries, the gallery items that are at least as similar to the query.

    Args:
        queries: Q query embeddings.
        gallery: G gallery embeddings.
        counter: thresholds of the queries; updated in place.
        excluded: pairs excluded from the count: relevant and ignored ones.
        order: (q,) the queries in the order of the counter's blocks.
        processes: only if `queries` is `gallery`, and `order` is 0, ..., Q - 1: each similarity is computed once and
            counted for both items, and each process computes every `world_size`-th block of the matrix.

    Yields:
        The number of similarities in each block of the matrix.
    """
    device, (rank, world_size, _) = order.device, processes or ALONE
    position_of = torch.full((len(queries),), -1, device=device)  # (Q,), -1 for queries that are not searched
    position_of[order] = torch.arange(len(order), device=device)
    query, item = position_of[excluded.query], excluded.item
    query, item = query[query >= 0], item[query >= 0]
    excluded_pairs = _ExcludedPairs(query, item, (len(order), len(gallery)), counter.block_shape)
    buffer = torch.empty(math.prod(counter.block_shape), device=device)
    blocks = block_pairs(queries, gallery, order, counter.block_shape, processes is not None)
    for number, (query_block, part, item_block, items) in enumerate(blocks):
        both_ways = processes is not None and query_block < item_block
        if number % world_size == rank:
            # allocating a matrix per block would take a third as long as the product
            similarities = buffer[: len(part) * len(items)].view(len(part), len(items))
            torch.mm(part, items.T, out=similarities)
            excluded_pairs.mask(similarities, query_block, item_block)
            counter.count(
                similarities, query_block, item_block * counter.block_shape[1], item_block if both_ways else None
            )
            counter.resolve_in_float64(queries, gallery, min_pairs=FLOAT64_PAIRS)
        yield (1 + both_ways) * len(part) * len(items)
    counter.resolve_in_float64(queries, gallery)


def block_pairs(
    queries: EmbeddingBlocks, gallery: EmbeddingBlocks, order: Tensor, block_shape: tuple[int, int], upper_half: bool
) -> Iterator[tuple[int, Tensor, int, Tensor]]:
    """Blocks of the similarity matrix: number and embeddings (q, D) of the query block, the same of the item block.

    upper_half: only blocks with query block <= item block.
    """
    size, items_per_block = block_shape
    for first in range(0, len(order), BLOCKS_IN_MEMORY * size):
        parts = torch.split(order[first : first + BLOCKS_IN_MEMORY * size], size)
        query_blocks = [(number, queries.select(part).float()) for number, part in enumerate(parts, first // size)]
        for start in range(first if upper_half else 0, len(gallery), items_per_block):
            item_block, stop = start // items_per_block, min(start + items_per_block, len(gallery))
            items = gallery.block(start, stop)
            for query_block, part in query_blocks:
                if not upper_half or query_block <= item_block:
                    yield query_block, part, item_block, items
