"""Recall@k as a hit rate: is any of the k nearest of the same class?"""

from collections.abc import Sequence
from typing import Any

from lightning_recall.metrics.retrieval_scores import RetrievalScores


class RecallAtK(RetrievalScores):
    """Share of the queries that find an item of their own class among their k nearest, leave-one-out.

    This is the number that retrieval benchmarks report as Recall@k. It is a hit rate, not the share of relevant items
    found, which is `torchmetrics.retrieval.RetrievalRecall` and `RetrievalScores(["fraction_retrieved"])`. All else is as in
    `RetrievalScores`: ties count against the query, queries and gallery may be told apart, an index counts once.

    Args:
        ks: cut-offs, integers from 1. One integer, as in `RecallAtK(1)`, gives a scalar, which `self.log`,
            `MetricCollection`, `MetricTracker` and their like take; a sequence gives a dict, even of one.
        normalize: whether to scale embeddings to unit length, on by default; off ranks by dot products.
        ignore_index: items with this label are left out, neither queries nor retrieved; None: there are none.
        kwargs: for `RetrievalScores` and `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,) and, optionally, indices, is_query, is_gallery and groups
    (B,); `compute` gives {"recall@1": scalar in [0, 1], ...}, or a scalar for one integer as `ks`.

    In a LightningModule call `metric.update(...)` with every batch. Then `self.log("val/recall@1", metric)` logs a
    scalar, and Lightning resets it after the epoch. A dict is logged at the end of the epoch, by
    `self.log_dict(metric.compute(), sync_dist=True)` and `metric.reset()`.

    torchmetrics' `BootStrapper` draws items with replacement, so that an item finds its own copy: give `update` the
    indices of the items with every batch, and copies count once.

    Raises:
        ValueError: as `RetrievalScores` does.

    >>> import torch
    >>> metric = RecallAtK(ks=(1, 2))
    >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([5, 5, 6, 6]))
    >>> metric.compute()
    {'recall@1': tensor(1.), 'recall@2': tensor(1.)}
    >>> metric = RecallAtK(1)
    >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([5, 5, 6, 6]))
    >>> metric.compute()
    tensor(1.)
    """

    def __init__(
        self,
        ks: int | Sequence[int] = (1, 2, 4, 8),
        normalize: bool = True,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__("recall", ks, normalize, ignore_index, **kwargs)
