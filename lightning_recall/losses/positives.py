"""Finds the queries of a batch and their positives."""

from typing import NamedTuple

import torch
from torch import Tensor


class QueryPositives(NamedTuple):
    """Indices of the queries and of their positives.

    Attributes:
        queries: (Q,) indices of the queries.
        positives: (Q, P) indices of the positives of each query, padded.
        valid: (Q, P) bool, False for padding.
    """

    queries: Tensor
    positives: Tensor
    valid: Tensor


class SortedQueries(NamedTuple):
    """Queries of a batch, sorted by number of positives, so that blocks of them need little padding.

    Attributes:
        queries: (Q,) indices of the queries.
        num_positives: (Q,) ascending.
        class_start: (Q,) position in `order` of the first item of the query's class.
        position: (Q,) position of the query within its class.
        order: (N,) indices of the items, sorted by class and index.
    """

    queries: Tensor
    num_positives: Tensor
    class_start: Tensor
    position: Tensor
    order: Tensor

    def select(self, keep: Tensor) -> "SortedQueries":
        """The queries where the mask `keep` (Q,) is True."""
        queries, num_positives, class_start, position = (field[keep] for field in self[:-1])
        return SortedQueries(queries, num_positives, class_start, position, self.order)

    def positives(self, part: slice, width: int) -> QueryPositives:
        """Positives of the queries in `part`, by ascending index, padded to `width` (with indices of any item)."""
        queries, num_positives, class_start, position = (field[part] for field in self[:-1])
        offset = torch.arange(width, device=queries.device)  # (P,) offset within the class
        # the query itself is skipped
        sorted_index = class_start[:, None] + offset + (offset >= position[:, None])  # (Q, P) index into `order`
        positives = self.order[sorted_index.clamp(max=max(len(self.order) - 1, 0))]
        return QueryPositives(queries, positives, offset < num_positives[:, None])


def sort_queries(labels: Tensor) -> SortedQueries:
    """Finds the items that have a positive.

    Args:
        labels: (N,) integers, any order, classes of any size.
    """
    order = torch.argsort(labels, stable=True)  # items of a class are adjacent
    _, inverse, counts = torch.unique_consecutive(labels[order], return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    size, start = counts[inverse], starts[inverse]  # (N,) size and start of the class of each sorted item
    sorted_position = torch.argsort(order)  # (N,) position of each item in `order`
    # by size and index: if all classes have the same size, the queries are in their original order
    by_size = sorted_position[torch.argsort(size[sorted_position], stable=True)]
    by_size = by_size[size[by_size] > 1]
    start = start[by_size]
    return SortedQueries(order[by_size], size[by_size] - 1, start, by_size - start, order)


def find_positives(labels: Tensor) -> QueryPositives:
    """Finds the queries of a batch and the indices of their positives, excluding the query.

    Args:
        labels: (N,) integers, any order, classes of any size.

    Returns:
        The queries that have a positive, sorted by number of positives, so that blocks need little padding.
    """
    queries = sort_queries(labels)
    return queries.positives(slice(None), int(queries.num_positives[-1]) if len(queries.queries) else 0)
