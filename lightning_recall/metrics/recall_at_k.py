"""Recall@k as a hit rate: whether any of the k nearest items has the query's class."""

from collections.abc import Sequence
from typing import Any

from lightning_recall.metrics.retrieval_scores import RetrievalScores


class RecallAtK(RetrievalScores):
    """Fraction of queries with a same-class item among their k nearest neighbours, leave-one-out.

    Retrieval benchmarks report this number as Recall@k. It is a hit rate. It differs from
    `torchmetrics.retrieval.RetrievalRecall`, the fraction of relevant items retrieved, which is
    `RetrievalScores(["fraction_retrieved"])`. As in `RetrievalScores`, ties count against the query, queries
    and gallery may be separate sets, and duplicate indices count once.

    Args:
        ks: cut-offs, integers, at least 1. One integer, as in `RecallAtK(1)`, gives a scalar, which `self.log`,
            `MetricCollection`, `MetricTracker` and similar tools accept; a sequence gives a dict, even with one
            cut-off.
        normalize: True, the default, ranks by cosine similarity. False ranks by dot product.
        ignore_index: items with this label are excluded from queries and gallery; None excludes nothing.
        kwargs: keyword arguments passed to `RetrievalScores` and `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,) and, optionally, indices, is_query, is_gallery and groups
    (B,); `compute` gives {"recall@1": scalar in [0, 1], ...}, or a scalar for one integer as `ks`.

    In a LightningModule call `metric.update(...)` with every batch. Then `self.log("val/recall@1", metric)` logs a
    scalar, and Lightning resets the metric after the epoch. To log a dict, call
    `self.log_dict(metric.compute(), sync_dist=True)` in `on_validation_epoch_end`, then `metric.reset()`.

    torchmetrics' `BootStrapper` draws items with replacement, so an item can retrieve its own duplicate; pass indices
    to `update` so duplicates count once.

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
