"""Every score of a retrieval, per query and on average, from one exact search."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_recall.metrics.matches import Labelled, match_labels
from lightning_recall.metrics.scores import OF_THE_FIRST, check_scores, score
from lightning_recall.metrics.searched import Searched
from lightning_recall.metrics.shards import Shards


class RetrievalScores(Metric):
    """Scores of a retrieval by cosine similarity, all from one exact blockwise search.

    Every item queries all the others, unless `update` tells queries from gallery; an item of whose class no other is
    searched is no query, but may be retrieved. Scores, each averaged over the queries:

    - `recall`: is any of the k nearest of the query's class? A hit rate, which retrieval benchmarks call Recall@k. k
      beyond the gallery takes all of it.
    - `found`: share of the relevant items among the k nearest, which `torchmetrics.retrieval` calls recall.
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
        scores: which of the above.
        ks: cut-offs of recall, found and precision, integers from 1.
        normalize: whether to scale embeddings to unit length, on by default; off ranks by dot products.
        ignore_index: items with this label are left out, neither queries nor retrieved; None: there are none.
        progress: whether to show a bar where the search takes more than two seconds.
        kwargs: for `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,) and, optionally, indices, is_query, is_gallery and groups
    (B,); `compute` gives {"recall@1": scalar in [0, 1], ..., "map@r": ...}.

    Raises:
        ValueError: for unknown scores, empty or non-positive `ks`, embeddings and labels that do not fit or are not
            finite, indices or groups for some batches only, and from `compute` if no item has another of its class.

    >>> import torch
    >>> metric = RetrievalScores(("recall", "map@r", "mrr"), ks=(1, 2))
    >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([5, 6, 6, 5]))
    >>> metric.compute()
    {'recall@1': tensor(0.), 'recall@2': tensor(0.5000), 'map@r': tensor(0.), 'mrr': tensor(0.4167)}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    embeddings: list[Tensor]
    labels: list[Tensor]
    indices: list[Tensor]
    is_query: list[Tensor]
    is_gallery: list[Tensor]
    groups: list[Tensor]

    def __init__(
        self,
        scores: Sequence[str] = ("recall", "map@r", "r_precision", "mrr"),
        ks: Sequence[int] = (1, 2, 4, 8),
        normalize: bool = True,
        ignore_index: int | None = None,
        progress: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_scores(scores, ks)
        self.scores = tuple(scores)
        self.ks = tuple(ks)
        self.normalize = normalize
        self.ignore_index = ignore_index
        self.progress = progress
        for name in ("embeddings", "labels", "indices", "is_query", "is_gallery", "groups"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

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
        width = self.embeddings[0].shape[1] if len(self.embeddings) else embeddings.shape[1]
        if embeddings.shape[1] != width:
            raise ValueError(f"embeddings of width {embeddings.shape[1]} after some of width {width}.")
        for name, given in (("indices", indices), ("groups", groups)):
            if (given is not None) != (len(getattr(self, name)) > 0) and len(self.labels) > 0:
                raise ValueError(f"Give {name} with every batch, or with none.")
        kept = labels == labels if self.ignore_index is None else labels != self.ignore_index  # (B,)
        if not torch.isfinite(embeddings[kept]).all():
            raise ValueError("embeddings hold NaN or infinity: the network has diverged or its input is broken.")
        self.embeddings.append(embeddings.detach()[kept])
        self.labels.append(labels[kept].long())
        for state, chosen in ((self.is_query, is_query), (self.is_gallery, is_gallery)):
            state.append(kept[kept] if chosen is None else chosen.to(labels.device)[kept])
        for numbers, given in ((self.indices, indices), (self.groups, groups)):
            if given is not None:
                numbers.append(given.to(labels.device)[kept].long())

    def compute(self) -> dict[str, Tensor]:
        """Each score, over all that was added."""
        return self.search().means()

    def search(self) -> Searched:
        """What `compute` averages: the scores of every query, and where it found its first relevant item.

        With several processes, call it within `sync_context()`, as `compute` does by itself; each process gets all.
        """
        if len(self.embeddings) == 0:
            raise ValueError("Scores of nothing: no batch was added with update().")
        names = ("embeddings", "labels", "is_query", "is_gallery", "indices", "groups")
        known = {name: dim_zero_cat(getattr(self, name)) for name in names if len(getattr(self, name)) > 0}
        if known["embeddings"].device.type == "mps":  # which has no float64
            known = {name: values.cpu() for name, values in known.items()}
        if "indices" in known:
            once = first_of_each(known["indices"])
            if not torch.equal(once, torch.arange(len(known["indices"]), device=once.device)):
                known = {name: values[once] for name, values in known.items()}
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
        return Searched(embeddings, labels, indices, gallery, rows, first_ranks, columns, self.normalize, groups=groups)

    def search_share(self, known: Mapping[str, Tensor], queries: Tensor, gallery: Tensor) -> Tensor:
        """Row, rank of the first relevant item, and scores (Q, 2 + S) of each query; processes share the work."""
        own, searched = (labelled_rows(known, rows, self.normalize) for rows in (queries, gallery))
        apart = self._is_synced and torch.distributed.is_initialized()
        group = self.process_group
        share = (torch.distributed.get_rank(group), torch.distributed.get_world_size(group)) if apart else (0, 1)
        only_first = set(self.scores) <= OF_THE_FIRST
        found = [torch.zeros(0, 2 + len(self.names()), dtype=torch.float64, device=queries.device)]
        for matches in match_labels(own, searched, share, only_first, self.progress and share[0] == 0):
            columns = [queries[matches.queries], matches.ranks[matches.place == 0]]
            columns += score(matches, self.scores, self.ks).values()
            found.append(torch.stack([column.double() for column in columns], dim=1))
        everything = torch.cat(found)
        everything = torch.cat(gather_all_tensors(everything, group)) if apart else everything
        return everything[everything[:, 0].argsort()]

    def names(self) -> list[str]:
        """Keys of the scores, in order."""
        at_k = {"recall", "found", "precision"}
        return [key for name in self.scores for key in ([f"{name}@{k}" for k in self.ks] if name in at_k else [name])]


def check_batch(embeddings: Tensor, labels: Tensor) -> None:
    """Refuses a batch whose shapes or types do not fit.

    Raises:
        ValueError: in that case.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "embeddings must be of shape (B, D) and labels (B,), "
            f"got {tuple(embeddings.shape)} and {tuple(labels.shape)}."
        )
    if not embeddings.is_floating_point():
        raise ValueError(f"embeddings must be floating point, got {embeddings.dtype}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}.")


def labelled_rows(known: Mapping[str, Tensor], rows: Tensor, normalize: bool) -> Labelled:
    """Some rows (n,) of what is known; without a copy of the embeddings if they are all."""
    embeddings, groups = known["embeddings"], known.get("groups")
    chosen = embeddings if len(rows) == len(embeddings) else embeddings[rows]
    shards = Shards(chosen, normalize, embeddings.device)
    return Labelled(shards, known["labels"][rows], rows, None if groups is None else groups[rows])


def first_of_each(indices: Tensor) -> Tensor:
    """Places (M,) at which each of the M different values of `indices` (N,) stands first, by ascending value."""
    order = torch.argsort(indices, stable=True)
    ordered = indices[order]
    return order[torch.cat([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]])]
