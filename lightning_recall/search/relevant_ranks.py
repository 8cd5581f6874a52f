"""Ranks of each query's relevant items; relevance comes from labels or from a list of pairs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_recall.search.count_ahead import ALONE, Processes, count_ahead
from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.ranks import QueryItemPairs, RankCounter, block_shape, full_precision, square_block_shape
from lightning_recall.search.same_label import SameLabelPairs
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
    processes: Processes | None = None,
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
        bar: progress bar, advanced by the number of counted similarities.
        processes: only if `queries` is `gallery`: each similarity is computed once and counted for both items, and
            these processes share the work.
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
    counts = num_relevant.clamp(max=1) if only_first else num_relevant
    if processes is None:
        order = query_indices[counts[query_indices].argsort(descending=True, stable=True)]
        shape = block_shape(query.device)
    else:
        order = torch.arange(len(queries), device=query.device)
        shape = square_block_shape(query.device)
    counter = RankCounter(similarity, counts, order, gallery.dim, shape)
    for num_similarities in count_ahead(queries, gallery, counter, pairs, order, processes):
        if bar is not None:
            bar.update(num_similarities)
    num_ahead = counter.num_ahead()
    rank = (num_ahead if processes is None else processes.total(num_ahead)) + num_before + 1
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

    def reordered(self, order: Tensor) -> "LabelledEmbeddings":
        """The same items in the order of the given indices (N,)."""
        groups = None if self.groups is None else self.groups[order]
        return LabelledEmbeddings(self.embeddings.reordered(order), self.labels[order], self.ids[order], groups)


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
    query_indices = queries.labels.argsort(stable=True).tensor_split(world_size)[rank]  # (q,)
    same_label = SameLabelPairs.of(query_indices, queries.labels, gallery.labels)
    with _search(query_indices.device, len(query_indices) * len(gallery.labels), progress) as bar:
        for part in _chunks(same_label.counts):
            yield _rank_same_label(queries, gallery, same_label.part(part), only_first, bar)


def rank_leave_one_out(
    items: LabelledEmbeddings, processes: Processes = ALONE, only_first: bool = False, progress: bool = False
) -> Iterator[RelevantRanks]:
    """Ranks, for each item, the others that have its label: the ranks of `rank_by_label(items, items)`, faster.

    Each similarity is computed once and counted for both items, unless more than `MAX_PAIRS` pairs have the same label.

    Args:
        items: N embeddings, each a query and in the gallery.
        processes: the processes that share the search; each gets the ranks of its part of the queries.
        only_first: whether to rank only each query's most similar relevant item, which is faster.
        progress: whether to show a progress bar if the search takes longer than two seconds.

    Yields:
        Ranks of one chunk of queries at a time. Queries without a relevant item are omitted.
    """
    order = _large_classes_first(items.labels)
    ordered = items.reordered(order)
    same_label = SameLabelPairs.of(torch.arange(len(order), device=order.device), ordered.labels, ordered.labels)
    if int(same_label.counts.sum()) > MAX_PAIRS:
        yield from rank_by_label(items, items, (processes.rank, processes.world_size), only_first, progress)
        return
    with _search(order.device, len(order) ** 2, progress) as bar:
        ranks = _local_part(_rank_same_label(ordered, ordered, same_label, only_first, bar, processes), processes)
        yield ranks._replace(queries=order[ranks.queries], item=order[ranks.item])


def _rank_same_label(
    queries: LabelledEmbeddings,
    gallery: LabelledEmbeddings,
    same_label: SameLabelPairs,
    only_first: bool,
    bar: "tqdm[None]",
    processes: Processes | None = None,
) -> RelevantRanks:
    """Ranks the gallery items that have the label of their query; `processes` as in `rank_pairs`."""
    pairs = same_label.pairs()
    is_ignored = queries.ids[pairs.query] == gallery.ids[pairs.item]
    if queries.groups is not None and gallery.groups is not None:
        is_ignored |= queries.groups[pairs.query] == gallery.groups[pairs.item]
    similarity = same_label.similarities(queries.embeddings, gallery.embeddings)
    return rank_pairs(queries.embeddings, gallery.embeddings, pairs, similarity, is_ignored, only_first, bar, processes)


def _local_part(ranks: RelevantRanks, processes: Processes) -> RelevantRanks:
    """The ranks of this process's part of the queries."""
    first, last = (len(ranks.queries) * n // processes.world_size for n in (processes.rank, processes.rank + 1))
    is_local = (ranks.query_position >= first) & (ranks.query_position < last)  # (P,)
    return RelevantRanks(
        ranks.queries[first:last],
        ranks.num_relevant[first:last],
        ranks.query_position[is_local] - first,
        ranks.rank[is_local],
        ranks.num_relevant_before[is_local],
        ranks.item[is_local],
    )


@contextmanager
def _search(device: torch.device, num_similarities: int, progress: bool) -> "Iterator[tqdm[None]]":
    """Computes in true float32 and shows a progress bar."""
    with (
        full_precision(device),
        tqdm(total=num_similarities, disable=not progress, **PROGRESS_BAR_OPTIONS) as bar,
    ):
        yield bar


def _large_classes_first(labels: Tensor) -> Tensor:
    """The items (N,) sorted by the size of their class, descending, and by class."""
    _, class_of, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    order = class_of.argsort(stable=True)
    by_size: Tensor = order[sizes[class_of[order]].argsort(descending=True, stable=True)]
    return by_size


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
