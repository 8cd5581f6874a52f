"""Retrieval metrics, per query and averaged, from one exact search."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_recall.metrics.base import RetrievalMetric
from lightning_recall.metrics.scores import AT_K, FIRST_RANK_SCORES, checked_scores, score, score_names
from lightning_recall.metrics.states import concatenated_states, labelled_embeddings
from lightning_recall.search.count_ahead import Processes
from lightning_recall.search.relevant_ranks import rank_by_label, rank_leave_one_out
from lightning_recall.search.result import SearchResult


class RetrievalScores(RetrievalMetric):
    """Retrieval metrics by cosine similarity, all from one exact blockwise search.

    Every item queries all the others, unless `update` gets is_query or is_gallery. Items without a same-class gallery
    item are not queries, but other queries may retrieve them. Scores, each averaged over the queries:

    - `recall`: 1 if any of the k nearest items has the query's class, else 0: the hit rate that retrieval benchmarks
      call Recall@k. If k exceeds the gallery size, the whole gallery is used.
    - `fraction_retrieved`: fraction of the relevant items that are among the k nearest, which `torchmetrics.retrieval`
      calls recall.
    - `precision`: fraction of the k nearest that are relevant; the denominator is always k.
    - `r_precision`: precision at R, the number of relevant items that the query has.
    - `map@r`: mean over ranks i = 1..R of precision@i if item i is relevant, else 0 (Musgrave, Belongie and Lim, "A
      Metric Learning Reality Check", ECCV 2020).
    - `map`: mean of the precision at each relevant item.
    - `mrr`: reciprocal rank of the first relevant item.
    - `minp`: number of relevant items over the rank of the last one, mINP (Ye et al., "Deep Learning for Person
      Re-identification: A Survey and Outlook", TPAMI 2021).

    Ties are broken against the query: a collapsed network scores 0. Similarities too close for float32 are compared in
    float64, so that the scores are the same for any block size, number of processes and device. The N x N similarities
    are never stored at once; with several processes, each searches its part of the queries. Items with the same index
    count once, such as those that a distributed sampler repeats.

    Args:
        scores: names from the list above. A single name gives a scalar if it has no cut-off or `ks` is one integer;
            otherwise, a dict. `self.log`, `MetricCollection`, `MetricTracker` and similar tools accept scalars. A
            sequence gives a dict, even with one name.
        ks: cut-offs of recall, fraction_retrieved and precision, at least 1: a sequence of integers, or one integer.
        normalize: True, the default, ranks by cosine similarity. False ranks by dot product.
        ignore_index: items with this label are excluded from queries and gallery; None excludes nothing.
        progress: whether to show a progress bar if the search takes longer than two seconds.
        kwargs: keyword arguments passed to `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,) and, optionally, indices, is_query, is_gallery and groups
    (B,), all of them tensors; `compute` gives {"recall@1": scalar in [0, 1], ..., "map@r": ...}, or a scalar.

    Raises:
        ValueError: if `scores` or `ks` are empty, unknown or repeated. `update` raises if shapes or dtypes do not
            match, if embeddings are not finite, or if indices or groups are passed for some batches only. `compute`
            raises if there is no query, or if a repeated index has different labels, groups or query and gallery flags.

    >>> import torch
    >>> metric = RetrievalScores(("recall", "map@r", "mrr"), ks=(1, 2))
    >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([5, 6, 6, 5]))
    >>> metric.compute()
    {'recall@1': tensor(0.), 'recall@2': tensor(0.5000), 'map@r': tensor(0.), 'mrr': tensor(0.4167)}
    """

    def __init__(
        self,
        scores: str | Sequence[str] = ("recall", "map@r", "r_precision", "mrr"),
        ks: int | Sequence[int] = (1, 2, 4, 8),
        normalize: bool = True,
        ignore_index: int | None = None,
        progress: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(ignore_index, **kwargs)
        self.scores, self.ks = checked_scores(scores, ks)
        self.returns_scalar = isinstance(scores, str) and (scores not in AT_K or not isinstance(ks, Iterable))
        self.normalize = normalize
        self.progress = progress

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Computes all scores; returns a scalar if one score was requested by name."""
        scores = self.search().means()
        return next(iter(scores.values())) if self.returns_scalar else scores

    def search(self) -> SearchResult:
        """Returns per-query scores and the rank of each query's first relevant item.

        With several processes, call it within `sync_context()`. `compute` does this automatically. Every process gets
        the full result.
        """
        states = concatenated_states(self, self.ignore_index)
        gallery = states["is_gallery"].nonzero().squeeze(1)
        queries, first_ranks, scores = self._search_all_queries(states, gallery)
        if len(states["labels"]) and not states["is_query"].any():
            raise ValueError(f"is_query is False for all {len(states['labels'])} items: there is no query to score.")
        if len(queries) == 0:
            raise ValueError(
                f"None of the {len(states['labels'])} items has a same-class item in the gallery, so there are no "
                "queries: evaluate classes with at least 2 images, and pass all batches to update()."
            )
        columns = dict(zip(score_names(self.scores, self.ks), scores.unbind(1), strict=True))
        return SearchResult(
            states["embeddings"],
            states["labels"],
            states.get("indices"),
            gallery,
            queries,
            first_ranks,
            columns,
            self.normalize,
            groups=states.get("groups"),
        )

    def _search_all_queries(self, states: Mapping[str, Tensor], gallery: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (Q,), ascending, the ranks (Q,) of their first relevant items, and S scores (Q, S).

        Each process searches its part of the queries; then all processes gather the results.
        """
        processes = self.processes()
        parts = self._search_local_queries(states, gallery, processes)
        if processes.world_size > 1:
            parts = tuple(torch.cat(gather_all_tensors(part, self.process_group)) for part in parts)
        queries, first_ranks, scores = parts
        order = queries.argsort()
        return queries[order], first_ranks[order], scores[order]

    def _search_local_queries(
        self, states: Mapping[str, Tensor], gallery: Tensor, processes: Processes
    ) -> tuple[Tensor, ...]:
        """Queries (Q,), ranks (Q,) of their first relevant items and scores (Q, S), for one process's queries."""
        queries = states["is_query"].nonzero().squeeze(1)
        labelled_queries = labelled_embeddings(states, queries, self.normalize)
        only_first = set(self.scores) <= FIRST_RANK_SCORES
        progress = self.progress and processes.rank == 0
        if torch.equal(queries, gallery):
            found = rank_leave_one_out(labelled_queries, processes, only_first, progress)
        else:
            labelled_gallery = labelled_embeddings(states, gallery, self.normalize)
            found = rank_by_label(labelled_queries, labelled_gallery, processes[:2], only_first, progress)
        num_scores = len(score_names(self.scores, self.ks))
        scores = torch.zeros(0, num_scores, dtype=torch.float64, device=queries.device)
        parts = [(queries[:0], queries[:0], scores)]
        for ranks in found:
            scores = torch.stack([*score(ranks, self.scores, self.ks).values()], dim=1)  # (q, S)
            parts.append((queries[ranks.queries], ranks.rank[ranks.num_relevant_before == 0], scores))
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))
