"""Exact ranks by blockwise search: how many items stand ahead of each relevant one.

Similarities are computed in fp32, a block at a time. Where one of them is too close to a relevant item's for fp32 to
tell which is larger, both are compared in float64. So the ranks are those of float64, whatever the block size, the
device and the number of processes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.search.embedding_blocks import EmbeddingBlocks

QUERY_ROWS, GALLERY_ROWS = 512, 4096  # of a block of similarities: 8 MiB, which stay in cache
DEVICE_QUERY_ROWS, DEVICE_GALLERY_ROWS = 2048, 32768  # on a GPU: 256 MiB, or it would wait for kernels to start
PAIRS = 2**13  # compared in float64 at a time: 64 MiB at D = 512
MANY_THRESHOLDS = 40  # relevant items of a query from which sorting a block's rows is faster than counting for each


class QueryItemPairs(NamedTuple):
    """Queries (P,) and gallery items (P,), by row number, ordered by query."""

    query: Tensor
    item: Tensor


def block_shape(device: torch.device) -> tuple[int, int]:
    """Rows of queries and of the gallery whose similarities are held at a time."""
    return (QUERY_ROWS, GALLERY_ROWS) if device.type == "cpu" else (DEVICE_QUERY_ROWS, DEVICE_GALLERY_ROWS)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in true fp32: no autocast, no TF32, no bf16 in their place. What was set is restored."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class RankCounter:
    """Similarities of each query's relevant items, against which all others are compared.

    Args:
        similarity: (P,) float64, in descending order within a query.
        counts: (Q,) of them that each query has, in order.
        dim: D of the embeddings.
    """

    def __init__(self, similarity: Tensor, counts: Tensor, dim: int) -> None:
        self.similarity = similarity
        self.counts = counts
        self.starts = counts.cumsum(0) - counts  # (Q,)
        self.ahead = torch.zeros(len(similarity), dtype=torch.int64, device=similarity.device)  # (P,) counted so far
        # 8 standard errors of a sum in order, which rounds by 0.23 sqrt(D) units in the last place for unit vectors,
        # and the rounding of what is multiplied. The tie is what float64 cannot tell from equal.
        self.doubt = (2 * dim**0.5 + 4) * 2.0**-24
        self.tie = dim * 2.0**-52
        self.undecided: list[QueryItemPairs] = []  # (threshold, item) to be compared in float64
        self.buffer = torch.empty(math.prod(block_shape(similarity.device)), device=similarity.device)

    def count(self, rows: Tensor, similarities: Tensor, first_item: int) -> None:
        """Counts the items ahead, in a block of similarities.

        Args:
            rows: (q,) queries, those with most thresholds first.
            similarities: (q, g) fp32; minus infinity where an item does not count.
            first_item: number of the block's first item.
        """
        counts = self.counts[rows]
        if len(rows) and float(counts.double().mean()) > MANY_THRESHOLDS:
            self.count_sorted(rows, similarities, first_item)
            return
        buffer = view_of(self.buffer, similarities.shape)
        for place in range(int(counts.max()) if len(rows) else 0):
            rows_left = int((counts > place).sum())
            slots = self.starts[rows[:rows_left]] + place  # (q,)
            low, high = self.limits(slots)
            block, out = similarities[:rows_left], buffer[:rows_left]
            above = torch.gt(block, high[:, None], out=out).sum(1)  # into floats: four times as fast as into bool
            ahead = torch.ge(block, low[:, None], out=out).sum(1)
            self.ahead[slots] += above.long()
            unclear = (above != ahead).nonzero().squeeze(1)
            if len(unclear):
                values = block[unclear]
                where, item = ((values >= low[unclear, None]) & (values <= high[unclear, None])).nonzero().unbind(1)
                self.undecided.append(QueryItemPairs(slots[unclear[where]], item + first_item))

    def count_sorted(self, rows: Tensor, similarities: Tensor, first_item: int) -> None:
        """As `count`, for queries with many thresholds."""
        ordered, items = similarities.sort(1)
        counts = self.counts[rows]
        place = torch.arange(int(counts.max()), device=rows.device)
        real = place < counts[:, None]  # (q, J)
        slots = (self.starts[rows, None] + place).where(real, 0)
        low, high = self.limits(slots)
        first = torch.searchsorted(ordered, low)  # (q, J)
        last = torch.searchsorted(ordered, high, right=True)
        self.ahead[slots[real]] += (ordered.shape[1] - last)[real]
        row, column = (real & (last > first)).nonzero().unbind(1)
        width = (last - first)[row, column]
        start = first[row, column].repeat_interleave(width)
        offset = torch.arange(len(start), device=rows.device) - (width.cumsum(0) - width).repeat_interleave(width)
        found = items[row.repeat_interleave(width), start + offset]
        self.undecided.append(QueryItemPairs(slots[row, column].repeat_interleave(width), found + first_item))

    def limits(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities in fp32 below which an item is surely behind, and above which it is surely ahead."""
        at = self.similarity[slots]
        return (at - self.doubt).float(), (at + self.doubt).float()

    def resolve_in_float64(
        self, queries: EmbeddingBlocks, gallery: EmbeddingBlocks, query_of: Tensor, at_least: int = 1
    ) -> None:
        """Compares what was in doubt in float64, if there are `at_least` so many; query_of (P,): of each threshold."""
        if sum(len(pairs.item) for pairs in self.undecided) < at_least:
            return
        slots, items = (torch.cat(parts) for parts in zip(*self.undecided, strict=True))
        self.undecided = []
        # a query's thresholds are often in doubt about the same items
        pairs, pair_of = torch.unique(query_of[slots] * len(gallery) + items, return_inverse=True)
        parts = torch.split(pairs, PAIRS)
        exact = [(queries.rows(part // len(gallery)) * gallery.rows(part % len(gallery))).sum(1) for part in parts]
        ahead = torch.cat(exact)[pair_of] >= self.similarity[slots] - self.tie
        self.ahead.index_add_(0, slots, ahead.long())


def count_ahead(
    queries: EmbeddingBlocks,
    gallery: EmbeddingBlocks,
    thresholds: RankCounter,
    hidden: QueryItemPairs,
    rows: Tensor,
) -> Iterator[int]:
    """Counts, for each threshold of some queries, the gallery items that are at least as similar to the query.

    Args:
        queries: Q rows.
        gallery: G rows.
        thresholds: of all Q queries; takes the counts.
        hidden: pairs that do not count: relevant ones, and those passed over.
        rows: (q,) the queries that have thresholds.

    Yields:
        After each block of the gallery, how many similarities it had.
    """
    query_rows, gallery_rows = block_shape(rows.device)
    rows = rows[thresholds.counts[rows].argsort(descending=True, stable=True)]
    place = torch.full((len(queries),), -1, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    own = queries.rows(rows).float()  # (q, D)
    query_of = torch.arange(len(queries), device=rows.device).repeat_interleave(thresholds.counts)
    hidden_place, hidden_item = place[hidden.query], hidden.item
    hidden_place, hidden_item = hidden_place[hidden_place >= 0], hidden_item[hidden_place >= 0]
    num_blocks = -(-len(rows) // query_rows)
    block_of = hidden_item // gallery_rows * num_blocks + hidden_place // query_rows
    block_of, order = block_of.sort()
    hidden_place, hidden_item = hidden_place[order] % query_rows, hidden_item[order] % gallery_rows
    keys = torch.arange(num_blocks * -(-len(gallery) // gallery_rows) + 1, device=rows.device)
    bounds = torch.searchsorted(block_of, keys).tolist()
    buffer = torch.empty(query_rows * gallery_rows, device=rows.device)
    for column, first in enumerate(range(0, len(gallery), gallery_rows)):
        items = gallery.block(first, min(first + gallery_rows, len(gallery)))  # (g, D)
        for number, part in enumerate(torch.split(own, query_rows)):
            similarities = view_of(buffer, (len(part), len(items)))
            torch.mm(part, items.T, out=similarities)
            here = slice(*bounds[column * num_blocks + number :][:2])
            similarities[hidden_place[here], hidden_item[here]] = -torch.inf
            thresholds.count(rows[number * query_rows :][:query_rows], similarities, first)
            thresholds.resolve_in_float64(queries, gallery, query_of, at_least=PAIRS)
        yield len(own) * len(items)
    thresholds.resolve_in_float64(queries, gallery, query_of)


def view_of(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    """The first elements of a buffer as a matrix: new memory for each block would cost a third of its product."""
    return buffer[: shape[0] * shape[1]].view(*shape)
