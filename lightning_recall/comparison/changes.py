"""Queries that only one of two models answers with an image of the right class first."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.search import SearchResult

MAX_SIMILARITIES = 2**24  # in memory at a time: 64 MiB


class Changes(NamedTuple):
    """Queries that only one model answers right: it retrieves an image of the query's class first.

    Sorted by the rank of the first relevant image of the model that is wrong, the largest first.

    queries: (n,) items.
    gained: (n,) bool: whether the second model is right.
    right: (n,) the item that the right model retrieves first.
    wrong: (n,) the item that the wrong model retrieves first.
    similarities: (n, 2) of the query to these two, each in its model.
    ranks: (n,) rank of the first relevant item, by the wrong model.
    both_right: number of queries that both models answer right.
    both_wrong: number of queries that both models answer wrong.
    """

    queries: Tensor
    gained: Tensor
    right: Tensor
    wrong: Tensor
    similarities: Tensor
    ranks: Tensor
    both_right: int
    both_wrong: int

    @property
    def num_gained(self) -> int:
        """Number of queries that only the second model answers right."""
        return int(self.gained.sum())

    @property
    def num_lost(self) -> int:
        """Number of queries that only the first model answers right."""
        return len(self.gained) - self.num_gained


def find_changes(first: SearchResult, second: SearchResult) -> Changes:
    """Compares two searches of the same queries in the same gallery."""
    first_right, second_right = first.first_ranks == 1, second.first_ranks == 1
    changed = (first_right != second_right).nonzero().squeeze(1)
    ranks = torch.maximum(first.first_ranks, second.first_ranks)[changed]
    order = ranks.argsort(descending=True, stable=True)
    changed, ranks = changed[order], ranks[order]
    queries, gained = first.queries[changed], second_right[changed]
    right, wrong = torch.zeros_like(queries), torch.zeros_like(queries)
    similarities = torch.zeros(len(queries), 2)
    for is_gained in (False, True):
        rows = (gained == is_gained).nonzero().squeeze(1)
        right_model, wrong_model = (second, first) if is_gained else (first, second)
        similarities[rows, 0], right[rows] = nearest_of_kind(right_model, queries[rows], relevant=True)
        similarities[rows, 1], wrong[rows] = nearest_of_kind(wrong_model, queries[rows], relevant=False)
    both = int((first_right & second_right).sum()), int((~first_right & ~second_right).sum())
    return Changes(queries, gained, right, wrong, similarities, ranks, *both)


def nearest_of_kind(result: SearchResult, queries: Tensor, relevant: bool) -> tuple[Tensor, Tensor]:
    """Similarity and item (q,) of the most similar relevant or irrelevant gallery item of queries (q,)."""
    assert result.labels is not None  # sets are paired only with labels
    nearest = [torch.zeros(0)], [queries[:0]]
    for part in torch.split(queries, max(MAX_SIMILARITIES // len(result.gallery), 1)):
        is_kept = result.labels[part, None] == result.labels[result.gallery]  # (q, G)
        if relevant:
            is_kept &= part[:, None] != result.gallery
            if result.groups is not None:
                is_kept &= result.groups[part, None] != result.groups[result.gallery]
        else:
            is_kept = ~is_kept
        top = result.similarities(part, result.gallery).masked_fill_(~is_kept, -torch.inf).max(1)
        nearest[0].append(top.values)
        nearest[1].append(result.gallery[top.indices])
    return torch.cat(nearest[0]), torch.cat(nearest[1])
