"""Every score of a retrieval, per query and on average, from one exact search."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_recall.metrics.scores import AT_K, OF_THE_FIRST, check_scores, score
from lightning_recall.metrics.states import add_states, append_rows, complete_states, gathered_rows, restore_columns
from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.inputs import check_batch, check_finite, check_flags, check_integers, check_same_columns
from lightning_recall.search.relevant_ranks import LabelledEmbeddings, rank_by_label
from lightning_recall.search.result import SearchResult


class RetrievalScores(Metric):
    """Scores of a retrieval by cosine similarity, all from one exact blockwise search.

    Every item queries all the others, unless `update` tells queries from gallery; an item of whose class no other is
    searched is no query, but may be retrieved. Scores, each averaged over the queries:

    - `recall`: is any of the k nearest of the query's class? A hit rate, which retrieval benchmarks call Recall@k. k
      beyond the gallery takes all of it.
    - `fraction_retrieved`: share of the relevant items among the k nearest, which `torchmetrics.retrieval` calls recall.
    - `precision`: share of relevant items among the k nearest; k divides even if it is beyond the gallery.
    - `r_precision`: precision at R, the number of relevant items that the query has.
    - `map@r`: mean precision over the first R places, 0 where the item is irrelevant (Musgrave, Belongie and Lim, "A
      Metric Learning Reality Check", ECCV 2020).
    - `map`: mean precision at every relevant item, and `mrr`: 1 over the rank of the first.

    Equally similar items: irrelevant ones count as nearer, so that a network which maps everything to one point scores
    0. Similarities too close for fp32 are compared in float64, so that the scores are the same for any block size,
    number of processes and device. The N x N similarities are never held together; with several processes each searches
    for its share of the queries. Items with the same index are one item seen again, such as those with which a
    distributed sampler fills its last batch, and count once.

    Args:
        scores: which of the above. One name, with one integer as `ks` if it has a cut-off, gives a scalar, which
            `self.log`, `MetricCollection`, `MetricTracker` and their like take; a sequence gives a dict, even of one.
        ks: cut-offs of recall, fraction_retrieved and precision, integers from 1: a sequence, or one.
        normalize: whether to scale embeddings to unit length, on by default; off ranks by dot products.
        ignore_index: items with this label are left out, neither queries nor retrieved; None: there are none.
        progress: whether to show a bar where the search takes more than two seconds.
        kwargs: for `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,) and, optionally, indices, is_query, is_gallery and groups
    (B,), all of them tensors; `compute` gives {"recall@1": scalar in [0, 1], ..., "map@r": ...}, or a scalar.

    Raises:
        ValueError: for unknown scores, empty or non-positive `ks`, embeddings and labels that do not fit or are not
            finite, lists or arrays, indices or groups for some batches only, and from `compute` if no item has another
            of its class, or an index was given twice with different labels or roles.

    >>> import torch
    >>> metric = RetrievalScores(("recall", "map@r", "mrr"), ks=(1, 2))
    >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([5, 6, 6, 5]))
    >>> metric.compute()
    {'recall@1': tensor(0.), 'recall@2': tensor(0.5000), 'map@r': tensor(0.), 'mrr': tensor(0.4167)}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    embeddings: list[Tensor]
    labels: list[Tensor]
    indices: list[Tensor]
    is_query: list[Tensor]
    is_gallery: list[Tensor]
    groups: list[Tensor]

    def __init__(
        self,
        scores: str | Sequence[str] = ("recall", "map@r", "r_precision", "mrr"),
        ks: int | Sequence[int] = (1, 2, 4, 8),
        normalize: bool = True,
        ignore_index: int | None = None,
        progress: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.scores, self.ks = check_scores(scores, ks)
        self.gives_scalar = isinstance(scores, str) and (scores not in AT_K or not isinstance(ks, Iterable))
        self.normalize = normalize
        self.ignore_index = ignore_index
        self.progress = progress
        add_states(self, "labels", "indices", "is_query", "is_gallery", "groups")

    def update(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices: Tensor | None = None,
        is_query: Tensor | None = None,
        is_gallery: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            embeddings: (B, D) floating point.
            labels: (B,) integers.
            indices: (B,) of the items in their data set, if known.
            is_query: (B,) bool, which items are queries; None: all.
            is_gallery: (B,) bool, which items are searched; None: all.
            groups: (B,) integers; a query passes over items of its own class and group, which count neither as right
                nor as wrong: those of its own camera, say. None: there are none.
        """
        check_batch(embeddings, labels)
        numbers = {"indices": indices, "groups": groups}
        check_integers(len(labels), **numbers)
        check_flags(len(labels), is_query=is_query, is_gallery=is_gallery)
        width = self.embeddings[0].shape[1] if len(self.embeddings) else embeddings.shape[1]
        if embeddings.shape[1] != width:
            raise ValueError(f"embeddings of width {embeddings.shape[1]} after some of width {width}.")
        check_same_columns({name: getattr(self, name) for name in numbers}, numbers, first=len(self.labels) == 0)
        classes = labels.to(embeddings.device, torch.int64)
        check_finite(embeddings if self.ignore_index is None else embeddings[classes != self.ignore_index])
        every = torch.ones_like(classes, dtype=torch.bool)
        queries, gallery = (every if chosen is None else chosen for chosen in (is_query, is_gallery))
        append_rows(self, embeddings, labels=classes, is_query=queries, is_gallery=gallery, **numbers)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Each score, over all that was added; a scalar where one was asked for by its name."""
        scores = self.search().means()
        return next(iter(scores.values())) if self.gives_scalar else scores

    def search(self) -> SearchResult:
        """What `compute` averages: the scores of every query, and where it found its first relevant item.

        With several processes, call it within `sync_context()`, as `compute` does by itself; each process gets all.
        """
        known = gathered_rows(self, self.ignore_index)
        queries, gallery = known["is_query"].nonzero().squeeze(1), known["is_gallery"].nonzero().squeeze(1)
        found = self.search_share(known, queries, gallery)
        if len(found) == 0:
            raise ValueError(
                f"None of the {len(known['labels'])} items has another of its class to find, so there is no query: "
                "evaluate classes with at least 2 images, in more or larger batches."
            )
        rows, first_ranks = found[:, :2].long().unbind(1)
        embeddings, labels, indices = known["embeddings"], known["labels"], known.get("indices")
        columns = dict(zip(self.names(), found[:, 2:].unbind(1), strict=True))
        groups = known.get("groups")
        return SearchResult(
            embeddings, labels, indices, gallery, rows, first_ranks, columns, self.normalize, groups=groups
        )

    def search_share(self, known: Mapping[str, Tensor], queries: Tensor, gallery: Tensor) -> Tensor:
        """Row, rank of the first relevant item, and scores (Q, 2 + S) of each query; processes share the work."""
        own, searched = (labelled_embeddings(known, rows, self.normalize) for rows in (queries, gallery))
        apart = self._is_synced and torch.distributed.is_initialized()
        group = self.process_group
        share = (torch.distributed.get_rank(group), torch.distributed.get_world_size(group)) if apart else (0, 1)
        only_first = set(self.scores) <= OF_THE_FIRST
        found = [torch.zeros(0, 2 + len(self.names()), dtype=torch.float64, device=queries.device)]
        for matches in rank_by_label(own, searched, share, only_first, self.progress and share[0] == 0):
            columns = [queries[matches.queries], matches.ranks[matches.place == 0]]
            columns += score(matches, self.scores, self.ks).values()
            found.append(torch.stack([column.double() for column in columns], dim=1))
        everything = torch.cat(found)
        everything = torch.cat(gather_all_tensors(everything, group)) if apart else everything
        return everything[everything[:, 0].argsort()]

    def names(self) -> list[str]:
        """Keys of the scores, in order."""
        return [key for name in self.scores for key in ([f"{name}@{k}" for k in self.ks] if name in AT_K else [name])]

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Figure and axes of one value, of several in order, or of what was added; needs matplotlib."""
        return self._plot(val, ax)

    def set_dtype(self, dst_type: str | torch.dtype) -> "RetrievalScores":
        """Changes the type of the embeddings, and of nothing else."""
        restore_columns(self, partial(super().set_dtype, dst_type))
        return self

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None) -> None:
        complete_states(self, dist_sync_fn, process_group or self.process_group)
        super()._sync_dist(dist_sync_fn, process_group)


def labelled_embeddings(known: Mapping[str, Tensor], rows: Tensor, normalize: bool) -> LabelledEmbeddings:
    """Some rows (n,) of what is known; without a copy of the embeddings if they are all."""
    embeddings, groups = known["embeddings"], known.get("groups")
    chosen = embeddings if len(rows) == len(embeddings) else embeddings[rows]
    blocks = EmbeddingBlocks(chosen, normalize, embeddings.device)
    return LabelledEmbeddings(blocks, known["labels"][rows], rows, None if groups is None else groups[rows])
