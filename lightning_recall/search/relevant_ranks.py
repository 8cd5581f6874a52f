"""Ranks of each query's relevant items; relevance comes from labels or from a list of pairs."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.ranks import QueryItemPairs, RankCounter, count_ahead, full_precision
from lightning_recall.tensors import arange_within_groups

MAX_QUERIES, MAX_PAIRS = 2**13, 2**22  # per search chunk: 16 MiB of queries at D = 512, 160 MiB of pairs

PROGRESS_BAR_OPTIONS = {"desc": "Searching", "unit": " similarities", "unit_scale": True, "delay": 2, "leave": False}


class RelevantRanks(NamedTuple):
    """Ranks of the relevant items of the given queries.

    queries: (q,) indices of the queries with at least one relevant item, ascending.
    num_relevant: (q,) number of relevant items per query.
    query_position: (P,) position in `queries` of the query that each rank belongs to.
    rank: (P,) ranks of relevant items, starting at 1, query by query, ascending; with `only_first`, only the
        best rank of each query.
    num_relevant_before: (P,) number of relevant items ranked before this one.
    item: (P,) gallery indices of the relevant items.
    """

    queries: Tensor
    num_relevant: Tensor
    query_position: Tensor
    rank: Tensor
    num_relevant_before: Tensor
    item: Tensor


def rank_pairs(
    queries: EmbeddingBlocks,
    gallery: EmbeddingBlocks,
    pairs: QueryItemPairs,
    similarity: Tensor,
    is_ignored: Tensor,
    only_first: bool = False,
    bar: "tqdm[None] | None" = None,
) -> RelevantRanks:
    """Ranks relevant items in the whole gallery, without ignored pairs.

    Ties: irrelevant items rank before relevant ones.

    Args:
        queries: query embeddings (Q, D).
        gallery: gallery embeddings (G, D).
        pairs: (P,) all relevant and all ignored pairs; every other item of the gallery is irrelevant.
        similarity: (P,) float64.
        is_ignored: (P,) bool, mask of the pairs that are ignored in the ranking, such as a query and itself.
        only_first: whether to rank only each query's most similar relevant item, which is faster.
        bar: progress bar, advanced by the number of computed similarities.
    """
    query, item, similarity = pairs.query[~is_ignored], pairs.item[~is_ignored], similarity[~is_ignored]
    order = similarity.argsort(descending=True, stable=True)
    order = order[query[order].argsort(stable=True)]
    query, item, similarity = query[order], item[order], similarity[order]
    num_relevant = torch.bincount(query, minlength=len(queries))  # (Q,)
    num_before = arange_within_groups(num_relevant)
    if only_first:
        is_best = num_before == 0
        query, item, similarity, num_before = query[is_best], item[is_best], similarity[is_best], num_before[is_best]
    query_indices = num_relevant.nonzero().squeeze(1)  # (q,)
    counter = RankCounter(similarity, num_relevant.clamp(max=1) if only_first else num_relevant, gallery.dim)
    for num_similarities in count_ahead(queries, gallery, counter, pairs, query_indices):
        if bar is not None:
            bar.update(num_similarities)
    rank = counter.num_ahead + num_before + 1
    query_position = torch.searchsorted(query_indices, query)
    return RelevantRanks(query_indices, num_relevant[query_indices], query_position, rank, num_before, item)


class LabelledEmbeddings(NamedTuple):
    """Embeddings (N, D) with labels, ids and optional groups.

    labels: (N,) integers.
    ids: (N,) integers; a query ignores the gallery item with the same id, because it is the same image.
    groups: (N,) integers; a query ignores items with the same label and group, such as images of the same camera. None:
        nothing is ignored.
    """

    embeddings: EmbeddingBlocks
    labels: Tensor
    ids: Tensor
    groups: Tensor | None = None


def rank_by_label(
    queries: LabelledEmbeddings,
    gallery: LabelledEmbeddings,
    rank_and_world_size: tuple[int, int] = (0, 1),
    only_first: bool = False,
    progress: bool = False,
) -> Iterator[RelevantRanks]:
    """Ranks, for each query, the items that have its label.

    Args:
        queries: Q query embeddings.
        gallery: G gallery embeddings.
        rank_and_world_size: rank of this process and number of processes; only this process's part of the queries is
            searched.
        only_first: whether to rank only each query's most similar relevant item, which is faster.
        progress: whether to show a progress bar if the search takes longer than two seconds.

    Yields:
        Ranks of one chunk of queries at a time. Queries without a relevant item are omitted.
    """
    rank, world_size = rank_and_world_size
    gallery_labels, order = gallery.labels.sort(stable=True)
    query_indices = queries.labels.argsort(stable=True).tensor_split(world_size)[rank]  # (q,)
    labels = queries.labels[query_indices]
    starts = torch.searchsorted(gallery_labels, labels)  # (q,) where a query's label begins in the gallery
    counts = torch.searchsorted(gallery_labels, labels, right=True) - starts
    num_similarities = len(query_indices) * len(gallery.labels)
    with (
        full_precision(query_indices.device),
        tqdm(total=num_similarities, disable=not progress, **PROGRESS_BAR_OPTIONS) as bar,
    ):
        for part in _chunks(counts):
            by_class = _QueriesByClass(query_indices[part], starts[part], counts[part], order)
            pairs = by_class.pairs()
            is_ignored = queries.ids[pairs.query] == gallery.ids[pairs.item]
            if queries.groups is not None and gallery.groups is not None:
                is_ignored |= queries.groups[pairs.query] == gallery.groups[pairs.item]
            similarity = by_class.similarities(queries.embeddings, gallery.embeddings)
            yield rank_pairs(queries.embeddings, gallery.embeddings, pairs, similarity, is_ignored, only_first, bar)


def _chunks(counts: Tensor) -> Iterator[slice]:
    """Slices of queries with `counts` (q,) relevant items, at most `MAX_QUERIES` and, if possible, `MAX_PAIRS` each."""
    total = counts.cumsum(0)
    begin = 0
    while begin < len(counts):
        before = int(total[begin] - counts[begin])
        end = min(int(torch.searchsorted(total, before + MAX_PAIRS, right=True)), begin + MAX_QUERIES)
        end = max(end, begin + 1)
        yield slice(begin, end)
        begin = end


class _QueriesByClass(NamedTuple):
    """Queries sorted by class, and the gallery slice that holds each query's class.

    queries: (q,) query indices, sorted by class.
    starts: (q,) position in `order` at which the query's class begins.
    counts: (q,) number of gallery items of the query's class.
    order: (G,) gallery indices, sorted by class.
    """

    queries: Tensor
    starts: Tensor
    counts: Tensor
    order: Tensor

    def pairs(self) -> QueryItemPairs:
        """Each query with all gallery items of its class (P,)."""
        positions = arange_within_groups(self.counts) + self.starts.repeat_interleave(self.counts)
        return QueryItemPairs(self.queries.repeat_interleave(self.counts), self.order[positions])

    def similarities(self, queries: EmbeddingBlocks, gallery: EmbeddingBlocks) -> Tensor:
        """Float64 similarities (P,) of these pairs, in the same order."""
        _, sizes = torch.unique_consecutive(self.starts + len(self.order) * (self.counts == 0), return_counts=True)
        first_queries = sizes.cumsum(0) - sizes  # position of the first query of each class
        parts = [torch.zeros(0, dtype=torch.float64, device=self.queries.device)]
        queries_by_class = torch.split(queries.select(self.queries), sizes.tolist())
        starts, counts = self.starts[first_queries].tolist(), self.counts[first_queries].tolist()
        for class_queries, start, count in zip(queries_by_class, starts, counts, strict=True):  # (c, D)
            items = torch.split(self.order[start : start + count], MAX_QUERIES)
            blocks = [class_queries @ gallery.select(part).T for part in items]
            parts.append(torch.cat(blocks, dim=1).flatten())
        return torch.cat(parts)
