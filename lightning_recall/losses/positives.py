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


def find_positives(labels: Tensor) -> QueryPositives:
    """Finds the queries of a batch and the indices of their positives, excluding the query.

    Args:
        labels: (N,) integers, any order, classes of any size.

    Returns:
        The queries that have a positive, sorted by number of positives, so that blocks need little padding.
    """
    order = torch.argsort(labels, stable=True)  # items of a class are adjacent
    _, inverse, counts = torch.unique_consecutive(labels[order], return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    size, start = counts[inverse], starts[inverse]  # (N,) size and start of the class of each sorted item
    by_size = torch.argsort(size, stable=True)
    by_size = by_size[size[by_size] > 1]
    size, start = size[by_size], start[by_size]

    max_positives = int(counts.max()) - 1 if len(counts) else 0
    offset = torch.arange(max_positives, device=labels.device)  # (P,) offset within the class
    query_offset = by_size - start  # offset of the query within its class; it is skipped
    sorted_index = start[:, None] + offset + (offset >= query_offset[:, None])  # (Q, P) index into `order`
    valid = offset < size[:, None] - 1
    positives = order[sorted_index.clamp(max=max(len(labels) - 1, 0))]
    return QueryPositives(order[by_size], positives, valid)
