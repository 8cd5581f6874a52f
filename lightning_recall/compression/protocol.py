"""Scores of searches by the protocol of `RetrievalScores`: who queries whom, and what a query ignores."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_recall.checks import check_integer, ks_to_tuple
from lightning_recall.embedding_sets import EmbeddingSet
from lightning_recall.metrics.scores import score
from lightning_recall.search import EmbeddingBlocks
from lightning_recall.search.embedding_blocks import BLOCK_SIZE
from lightning_recall.search.relevant_ranks import (
    LabelledEmbeddings,
    RelevantRanks,
    rank_by_label,
    rank_leave_one_out,
)
from lightning_recall.tensors import arange_within_groups

QUERIES_PER_BLOCK = 256  # queries whose lists are scored at a time
MAX_QUERIES = 5000  # the standard error of a Recall@k is at most 0.7 points
MAX_LIST = 1000  # items; with more relevant items of a query than this, lists have no mAP@R


class ListSearch(ABC):
    """A search that returns the first items of each query.

    engine: what searches: "torch" or "faiss".
    oversampling: candidates for each item that is asked for; `rescore` orders them.
    """

    engine = "torch"
    oversampling = 1

    @abstractmethod
    def candidates(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Similarities (q, k), descending, and gallery positions (q, k) for queries (q,); -1 is no item."""

    def rescore(self, queries: Tensor, positions: Tensor, similarities: Tensor) -> Tensor:
        """Better similarities (q, c) of queries (q,) to the items at gallery positions (q, c), each at least 0."""
        return similarities


class RetrievalProtocol:
    """Queries, gallery and relevant items of an embedding set, as `RetrievalScores` defines them.

    A query ignores itself and, with groups, items of its class and group. Items without a relevant gallery item are not
    queries. Ties count against the query.

    Args:
        embedding_set: with labels.
        ks: cut-offs of recall.
        max_queries: if there are more queries, this many of them are drawn, always the same ones.

    Raises:
        ValueError: if there are no labels, `max_queries` is below 1, no query has a relevant item, or a cut-off exceeds
            the number of items that a query is compared with.
    """

    def __init__(self, embedding_set: EmbeddingSet, ks: Sequence[int], max_queries: int = MAX_QUERIES) -> None:
        check_integer("max_queries", max_queries, 1)
        if embedding_set.labels is None:
            raise ValueError(f"{embedding_set.path} has no labels, so nothing is relevant: embed images with classes.")
        self.ks = ks_to_tuple(ks)
        self.labels, self.groups = embedding_set.labels, embedding_set.groups
        everything = torch.ones_like(self.labels, dtype=torch.bool)
        is_query = everything if embedding_set.is_query is None else embedding_set.is_query
        is_gallery = everything if embedding_set.is_gallery is None else embedding_set.is_gallery
        self.gallery = is_gallery.nonzero().squeeze(1)  # (G,)
        num_ignored = self._num_ignored(is_gallery)  # (N,)
        num_relevant = _counts(self.labels, is_gallery) - num_ignored
        queries = (is_query & (num_relevant > 0)).nonzero().squeeze(1)
        if len(queries) == 0:
            raise ValueError(
                f"No query of {embedding_set.path} has another item of its class in the gallery: evaluate classes with "
                "at least 2 images."
            )
        self.num_queries = len(queries)  # before some are drawn
        self.queries = _sample(queries, max_queries)  # (Q,)
        # leave-one-out is faster with all items as queries, though some have nothing relevant
        self.searched = is_query.nonzero().squeeze(1) if len(queries) <= max_queries else self.queries
        self.num_ignored, self.num_relevant = num_ignored, num_relevant
        most = len(self.gallery) - int(num_ignored[self.queries].max())
        if max(self.ks) > most:
            raise ValueError(
                f"ks must be at most {most}, the items that each query is compared with, got {max(self.ks)}."
            )

    def _num_ignored(self, is_gallery: Tensor) -> Tensor:
        """Number (N,) of gallery items that each item ignores."""
        if self.groups is None:
            return is_gallery.long()
        pairs = torch.stack([self.labels, self.groups], 1)
        return _counts(torch.unique(pairs, dim=0, return_inverse=True)[1], is_gallery)

    def exact_scores(self, queries: EmbeddingBlocks, items: EmbeddingBlocks) -> dict[str, float]:
        """Recall@k and mAP@R by the ranks of float64 similarities.

        Args:
            queries: what each of the N items is as a query.
            items: what each of them is in the gallery; the same object if that is the same.
        """
        if queries is items and torch.equal(self.searched, self.gallery):
            parts = rank_leave_one_out(self._labelled(items, self.gallery))
        else:
            parts = rank_by_label(self._labelled(queries, self.searched), self._labelled(items, self.gallery))
        scored = [(ranks.queries, score(ranks, ("recall", "map@r"), self.ks)) for ranks in parts]
        order = torch.cat([indices for indices, _ in scored]).argsort()  # the sum of RetrievalScores, to the last bit
        return _means([values for _, values in scored], order)

    def hamming_scores(self, signs: EmbeddingBlocks) -> dict[str, float]:
        """Recall@k and mAP@R by Hamming distances; too many are equal to compare them one by one in float64.

        Args:
            signs: (N, D) of -1 and 1.
        """
        ranks = [self._hamming_ranks(queries, signs) for queries in torch.split(self.queries, QUERIES_PER_BLOCK)]
        return _means([score(part, ("recall", "map@r"), self.ks) for part in ranks])

    def _hamming_ranks(self, queries: Tensor, signs: EmbeddingBlocks) -> RelevantRanks:
        """Ranks of the relevant items of queries (q,), from histograms of their distances to irrelevant items."""
        num_distances = signs.dim + 1
        histograms = torch.zeros(len(queries) * num_distances, dtype=torch.int64)
        relevant: list[tuple[Tensor, Tensor, Tensor]] = []
        first_bins = num_distances * torch.arange(len(queries), dtype=torch.int32)[:, None]  # (q, 1)
        query_signs = signs.select(queries).float()  # (q, D), scaled to unit length
        for items in torch.split(self.gallery, BLOCK_SIZE):  # (g,)
            products = query_signs @ signs.select(items).float().T
            distances = products.sub_(1).mul_(-signs.dim / 2).round_()  # (q, g)
            bins = distances.int().add_(first_bins)
            query, item = (self.labels[items] == self.labels[queries, None]).nonzero().unbind(1)  # of the same class
            histograms += torch.bincount(bins.flatten(), minlength=len(histograms))
            histograms -= torch.bincount(bins[query, item], minlength=len(histograms))
            is_relevant = ~self._is_ignored(queries[query], items[item, None]).squeeze(1)
            query, item = query[is_relevant], item[is_relevant]
            relevant.append((query, bins[query, item], items[item]))
        query, bins, item = (torch.cat(parts) for parts in zip(*relevant, strict=True))
        order = bins.argsort(stable=True)
        query, bins, item = query[order], bins[order], item[order]
        num_before = arange_within_groups(self.num_relevant[queries])
        num_ahead = histograms.view(len(queries), -1).cumsum(1).flatten()[bins]  # ties count against the query
        return RelevantRanks(queries, self.num_relevant[queries], query, num_ahead + num_before + 1, num_before, item)

    def _labelled(self, embeddings: EmbeddingBlocks, indices: Tensor) -> LabelledEmbeddings:
        """The items at the given indices."""
        is_all = len(indices) == len(embeddings)
        groups = None if self.groups is None else self.groups[indices]
        blocks = embeddings if is_all else embeddings.reordered(indices)
        return LabelledEmbeddings(blocks, self.labels[indices], indices, groups)

    def list_scores(self, search: ListSearch) -> dict[str, float]:
        """Recall@k of a search for max(ks) items, and mAP@R of one for as many items as the largest class has.

        A query whose class is larger than the longest list makes mAP@R NaN.
        """
        longest = int(self.num_relevant[self.queries].max())
        scores = _means([score(ranks, ("recall",), self.ks) for ranks in self._lists(search, max(self.ks))])
        if longest > MAX_LIST:
            return {**scores, "map@r": torch.nan}
        return {**scores, **_means([score(ranks, ("map@r",), self.ks) for ranks in self._lists(search, longest)])}

    def _lists(self, search: ListSearch, k: int) -> list[RelevantRanks]:
        """Ranks of the relevant items among the first k, a block of queries at a time."""
        return [
            self._ranks(queries, *self.first(search, queries, k))
            for queries in torch.split(self.queries, QUERIES_PER_BLOCK)
        ]

    def first(self, search: ListSearch, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Similarities and indices (q, c) of candidates for the first k items of queries (q,), c of at least k.

        The search is asked for as many items more as a query ignores, so that k x `oversampling` candidates are left.
        The similarity of ignored and missing items is minus infinity.
        """
        depth = k * search.oversampling
        num_asked = min(depth + int(self.num_ignored[queries].max()), len(self.gallery))
        similarities, positions = search.candidates(queries, num_asked)
        is_ignored = self._is_ignored(queries, self.gallery[positions]) | (positions < 0)
        kept = is_ignored.sort(dim=1, stable=True).indices[:, :depth]  # candidates first, in the order of the search
        similarities, positions, is_ignored = (x.gather(1, kept) for x in (similarities, positions, is_ignored))
        similarities = search.rescore(queries, positions.clamp(min=0), similarities)
        return similarities.masked_fill(is_ignored, -torch.inf), self.gallery[positions]

    def _is_ignored(self, queries: Tensor, items: Tensor) -> Tensor:
        """Whether queries (q,) ignore items (q, c)."""
        is_ignored = items == queries[:, None]
        if self.groups is not None:
            same_group = self.groups[items] == self.groups[queries, None]
            is_ignored |= same_group & (self.labels[items] == self.labels[queries, None])
        return is_ignored

    def _ranks(self, queries: Tensor, similarities: Tensor, items: Tensor) -> RelevantRanks:
        """Ranks of the relevant items in lists (q, c); a tie counts against the query."""
        is_relevant = (self.labels[items] == self.labels[queries, None]) & (similarities > -torch.inf)
        order = is_relevant.sort(dim=1, stable=True).indices
        order = order.gather(1, similarities.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
        is_relevant = is_relevant.gather(1, order)
        query, position = is_relevant.nonzero().unbind(1)
        num_before = (is_relevant.cumsum(1) - 1)[query, position]
        found = items.gather(1, order)[query, position]
        return RelevantRanks(queries, self.num_relevant[queries], query, position + 1, num_before, found)


def _sample(queries: Tensor, num: int) -> Tensor:
    """All queries (Q,), or `num` of them, drawn with a fixed seed, in their order."""
    if len(queries) <= num:
        return queries
    drawn = torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))[:num]
    return queries[drawn.sort().values]


def _counts(labels: Tensor, is_gallery: Tensor) -> Tensor:
    """Number (N,) of gallery items with the label of each item."""
    _, label_of = torch.unique(labels, return_inverse=True)
    return torch.bincount(label_of[is_gallery], minlength=int(label_of.max()) + 1)[label_of]


def _means(parts: Sequence[dict[str, Tensor]], order: Tensor | slice = slice(None)) -> dict[str, float]:
    """Scores averaged over the queries of all parts, in this order, rounded as those of `RetrievalScores`."""
    return {name: float(torch.cat([part[name] for part in parts])[order].mean().float()) for name in parts[0]}
