"""Ranks of each query's relevant items, told by labels or pair by pair."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.ranks import QueryItemPairs, RankCounter, count_ahead, full_precision

QUERIES_AT_ONCE, PAIRS_AT_ONCE = 2**13, 2**22  # searched for together: 16 MiB of queries at D = 512, 160 MiB of pairs

BAR = {"desc": "Searching", "unit": " similarities", "unit_scale": True, "delay": 2, "leave": False}


class RelevantRanks(NamedTuple):
    """Where some queries find their relevant items.

    queries: (q,) row numbers, ascending, of those that have something to find.
    num_relevant: (q,) how many relevant items each has.
    ranks: (P,) of relevant items from 1, query by query, ascending; only the first of each query if no more were asked.
    query: (P,) whose rank it is, as a place in `queries`.
    place: (P,) from 0, how many relevant items stand before it.
    item: (P,) the relevant items, rows of the gallery.
    """

    queries: Tensor
    num_relevant: Tensor
    ranks: Tensor
    query: Tensor
    place: Tensor
    item: Tensor


def rank_pairs(
    queries: EmbeddingBlocks,
    gallery: EmbeddingBlocks,
    pairs: QueryItemPairs,
    similarity: Tensor,
    ignored_pairs: Tensor,
    first: bool = False,
    bar: "tqdm[None] | None" = None,
) -> RelevantRanks:
    """Ranks relevant items among the whole gallery, except what is passed over.

    Of items that are equally similar, irrelevant ones stand first.

    Args:
        queries: Q rows.
        gallery: G rows.
        pairs: (P,) relevant ones and those passed over; every other item of the gallery is irrelevant.
        similarity: (P,) float64.
        ignored_pairs: (P,) bool, which pairs count neither as right nor as wrong, such as a query and itself.
        first: whether to rank only each query's most similar relevant item, which is faster.
        bar: progress, counted in similarities.
    """
    query, item, similarity = pairs.query[~ignored_pairs], pairs.item[~ignored_pairs], similarity[~ignored_pairs]
    order = similarity.argsort(descending=True, stable=True)
    order = order[query[order].argsort(stable=True)]
    query, item, similarity = query[order], item[order], similarity[order]
    num_relevant = torch.bincount(query, minlength=len(queries))  # (Q,)
    place = torch.arange(len(query), device=query.device) - (num_relevant.cumsum(0) - num_relevant)[query]
    if first:
        best = place == 0
        query, item, similarity, place = query[best], item[best], similarity[best], place[best]
    rows = num_relevant.nonzero().squeeze(1)  # (q,)
    thresholds = RankCounter(similarity, num_relevant.clamp(max=1) if first else num_relevant, gallery.dim)
    for done in count_ahead(queries, gallery, thresholds, pairs, rows):
        if bar is not None:
            bar.update(done)
    ranks = thresholds.ahead + place + 1
    return RelevantRanks(rows, num_relevant[rows], ranks, torch.searchsorted(rows, query), place, item)


class LabelledEmbeddings(NamedTuple):
    """Rows (N, D) of embeddings and what they are of.

    labels: (N,) integers.
    ids: (N,) integers; a query passes over the item that has its id: itself.
    groups: (N,) integers; a query passes over items of its own label and group, such as its own camera's. None: none.
    """

    rows: EmbeddingBlocks
    labels: Tensor
    ids: Tensor
    groups: Tensor | None = None


def rank_by_label(
    queries: LabelledEmbeddings,
    gallery: LabelledEmbeddings,
    share: tuple[int, int] = (0, 1),
    first: bool = False,
    progress: bool = False,
) -> Iterator[RelevantRanks]:
    """Ranks, for each query, the items that have its label.

    Args:
        queries: Q rows.
        gallery: G rows.
        share: (number, count): takes only this one of `count` parts of the queries.
        first: whether to rank only each query's most similar relevant item, which is faster.
        progress: whether to show a bar, where it takes more than two seconds.

    Yields:
        The matches of some queries at a time. Queries that have nothing to find are in none of them.
    """
    gallery_labels, order = gallery.labels.sort(stable=True)
    rows = queries.labels.argsort(stable=True).tensor_split(share[1])[share[0]]
    labels = queries.labels[rows]
    starts = torch.searchsorted(gallery_labels, labels)  # (q,) where a query's label begins in the gallery
    counts = torch.searchsorted(gallery_labels, labels, right=True) - starts
    total = counts.cumsum(0)
    with (
        full_precision(rows.device),
        tqdm(total=len(rows) * len(gallery.labels), disable=not progress, **BAR) as bar,
    ):
        begin = 0
        while begin < len(rows):
            before = int(total[begin] - counts[begin])
            end = min(int(torch.searchsorted(total, before + PAIRS_AT_ONCE, right=True)), begin + QUERIES_AT_ONCE)
            part = slice(begin, max(end, begin + 1))
            query_rows, begins, sizes = rows[part], starts[part], counts[part]
            query = query_rows.repeat_interleave(sizes)
            offset = torch.arange(len(query), device=rows.device) + before
            offset -= (total[part] - sizes - begins).repeat_interleave(sizes)
            pairs = QueryItemPairs(query, order[offset])
            own = queries.ids[pairs.query] == gallery.ids[pairs.item]
            if queries.groups is not None and gallery.groups is not None:
                own |= queries.groups[pairs.query] == gallery.groups[pairs.item]
            similarity = similarities_by_class(
                queries.rows, gallery.rows, rows[part], starts[part], counts[part], order
            )
            yield rank_pairs(queries.rows, gallery.rows, pairs, similarity, own, first, bar)
            begin = part.stop


def similarities_by_class(
    queries: EmbeddingBlocks, gallery: EmbeddingBlocks, rows: Tensor, starts: Tensor, counts: Tensor, order: Tensor
) -> Tensor:
    """Similarities (P,) in float64 of queries, class by class, and all items of their class.

    Args:
        queries: Q rows.
        gallery: G rows.
        rows: (q,) the queries, ordered by class.
        starts: (q,) where the class begins in `order`.
        counts: (q,) how many items it has.
        order: (G,) gallery items, ordered by class.
    """
    _, sizes = torch.unique_consecutive(starts + len(order) * (counts == 0), return_counts=True)
    firsts = sizes.cumsum(0) - sizes
    parts = [torch.zeros(0, dtype=torch.float64, device=rows.device)]
    own_rows = torch.split(queries.rows(rows), sizes.tolist())
    for own, start, count in zip(
        own_rows, starts[firsts].tolist(), counts[firsts].tolist(), strict=True
    ):  # own: (c, D)
        items = torch.split(order[start : start + count], QUERIES_AT_ONCE)
        blocks = [own @ gallery.rows(part).T for part in items]
        parts.append(torch.cat(blocks, dim=1).flatten())
    return torch.cat(parts)
