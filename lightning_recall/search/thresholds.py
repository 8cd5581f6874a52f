"""Counts the similarities above thresholds, for a block of queries."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.tensors import arange_within_groups

# above this many thresholds per query, sorting a block is faster than comparing it with each threshold
MANY_THRESHOLDS = 100


class ThresholdItemPairs(NamedTuple):
    """Thresholds (P,) and items (P,), by index."""

    threshold: Tensor
    item: Tensor


class BlockThresholds:
    """Thresholds of a block of q queries; J is the largest number of thresholds of a query.

    Args:
        values: (P,) all thresholds, float64, in descending order for each query.
        starts: (q,) position of each query's first threshold.
        counts: (q,) number of thresholds of each query.
        tolerance: similarities that differ from the threshold by up to this value are not decided.
    """

    def __init__(self, values: Tensor, starts: Tensor, counts: Tensor, tolerance: float) -> None:
        position = torch.arange(int(counts.max()), device=counts.device)[:, None]  # (J, 1)
        is_valid = position < counts  # (J, q)
        self.index = (starts + position).where(is_valid, len(values))  # (J, q); P is padding
        values = torch.cat([values, values.new_full((1,), torch.inf)])[self.index]  # nothing is above padding
        self.low, self.high = (values - tolerance).float(), (values + tolerance).float()  # (J, q)
        self.num_above = torch.zeros_like(self.index)  # (J, q), the counts so far
        # (J,): queries after the first `ends` do not have this threshold
        ends = (is_valid * torch.arange(1, len(counts) + 1, device=counts.device)).amax(1)
        self.ends: list[int] = ends.tolist()
        self.sorts = sum(self.ends) > MANY_THRESHOLDS * len(counts)

    def count(self, similarities: Tensor, buffer: Tensor, first_query: int, first_item: int) -> ThresholdItemPairs:
        """Counts similarities that are certainly above a threshold; returns the pairs that are not decided.

        Args:
            similarities: (b, g) float32, of consecutive queries with consecutive items.
            buffer: (b, g) float32, overwritten; with the strides of `similarities`.
            first_query: position of the first of these queries in the block.
            first_item: index of the first item.
        """
        part = slice(first_query, first_query + len(similarities))
        index, low, high = self.index[:, part], self.low[:, part], self.high[:, part]  # (J, b)
        if self.sorts:
            num_above, (position, query, item) = _count_by_sorting(similarities, low, high)
        else:
            num_above, undecided = self._compare(similarities, buffer, low, high, first_query)
            position, query, item = _items_between(similarities, low, high, undecided)
        self.num_above[:, part] += num_above
        return ThresholdItemPairs(index[position, query], item + first_item)

    def _compare(
        self, similarities: Tensor, buffer: Tensor, low: Tensor, high: Tensor, first_query: int
    ) -> tuple[Tensor, Tensor]:
        """Numbers (J, b) of similarities above each threshold, and which thresholds (n, 2) have undecided pairs."""
        above, not_below = low.new_zeros(2, *low.shape)  # (J, b) each
        limits = zip(low[..., None], high[..., None], above, not_below, self.ends, strict=True)
        for at_least, more_than, num_above, num_not_below, end in limits:  # (b, 1), (b, 1), (b,), (b,)
            if end <= first_query:
                break
            # a float buffer is several times faster than a bool one
            torch.sum(torch.gt(similarities, more_than, out=buffer), 1, out=num_above)
            torch.sum(torch.ge(similarities, at_least, out=buffer), 1, out=num_not_below)
        return above.long(), (above != not_below).nonzero()


def _items_between(
    similarities: Tensor, low: Tensor, high: Tensor, thresholds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, queries and items (P,) of the similarities (b, g) between the limits (J, b) of thresholds (n, 2)."""
    position, query = thresholds.unbind(1)
    values = similarities[query]  # (n, g)
    is_between = torch.ge(values, low[position, query, None], out=torch.empty_like(values))
    is_between *= torch.le(values, high[position, query, None], out=values)
    row, item = is_between.nonzero().unbind(1)
    return position[row], query[row], item


def _count_by_sorting(similarities: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Numbers (J, b) of similarities (b, g) above each threshold; positions, queries and items (P,) between limits."""
    ordered, items = similarities.contiguous().sort(1)
    first = torch.searchsorted(ordered, low.T.contiguous())  # (b, J)
    last = torch.searchsorted(ordered, high.T.contiguous(), right=True)
    query, position = (last > first).nonzero().unbind(1)
    num_between = (last - first)[query, position]
    column = first[query, position].repeat_interleave(num_between) + arange_within_groups(num_between)
    query, position = query.repeat_interleave(num_between), position.repeat_interleave(num_between)
    return (ordered.shape[1] - last).T, (position, query, items[query, column])
