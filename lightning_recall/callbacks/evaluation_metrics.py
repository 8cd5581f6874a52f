"""Holds one metric for each dataloader and each kind of embeddings (model, baselines)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_recall._lightning import LightningModule, Trainer
from lightning_recall.batch import IGNORED_LABEL, evaluation_inputs, evaluation_labels, type_and_shape
from lightning_recall.callbacks.index_checks import check_processes_differ, raise_if_indices_required
from lightning_recall.callbacks.index_recorder import indices_of_batch
from lightning_recall.data.attributes import ground_truth_of, roles_of
from lightning_recall.metrics import RetrievalScores, RevisitedMAP
from lightning_recall.metrics.revisited import GroundTruth
from lightning_recall.search.result import SearchResult


class EvaluationMetrics:
    """One metric for each dataloader and each kind of embeddings, such as those of the model or of a baseline.

    Args:
        scores: the scores of `RetrievalScores`; data sets with a `ground_truth` are scored by `RevisitedMAP` instead.
        ks: cut-offs.
        progress: whether a long search shows a progress bar.

    Attributes:
        metrics: (index of the dataloader, kind) -> metric.
        roles: index of the dataloader -> `is_query`, `is_gallery` and `groups` (N,), those that its data set defines.
        indices_known: index of the dataloader -> whether the indices of all its batches are known so far.
    """

    def __init__(self, scores: Sequence[str], ks: Sequence[int], progress: bool = False) -> None:
        self.scores, self.ks, self.progress = scores, ks, progress
        self.metrics: dict[tuple[int, str], RetrievalScores | RevisitedMAP] = {}
        self.roles: dict[int, dict[str, Tensor]] = {}
        self.indices_known: dict[int, bool] = {}

    def update(
        self,
        trainer: Trainer,
        loader: Any,
        position: tuple[int, int],
        embeddings: Mapping[str, Tensor],
        labels: Tensor,
        reason: str = "",
    ) -> None:
        """Adds a batch.

        Args:
            trainer: the Trainer that evaluates.
            loader: the dataloader of the batch.
            position: index of the dataloader, index of the batch.
            embeddings: (b, D) of each kind.
            labels: (b,).
            reason: why the caller requires the data set indices, for the error message; "" if it does not.

        Raises:
            ValueError: if the indices of the batch are required and unknown.
        """
        dataloader_idx, batch_idx = position
        dataset = getattr(loader, "dataset", None)
        if dataloader_idx not in self.roles:
            self.roles[dataloader_idx], self.indices_known[dataloader_idx] = roles_of(dataset), True
        roles, is_known = self.roles[dataloader_idx], self.indices_known[dataloader_idx]
        indices = indices_of_batch(loader, batch_idx, len(labels), labels) if is_known else None  # (b,)
        if indices is None:
            raise_if_indices_required(trainer, loader, roles, reason)
            self.forget_indices(dataloader_idx)
        for kind, values in embeddings.items():
            key = dataloader_idx, kind
            self.metrics[key] = self.metrics.get(key) or self.metric_of(dataset).to(values.device)
            update_metric(self.metrics[key], values, labels, indices, roles)

    def forget_indices(self, dataloader_idx: int) -> None:
        """Drops the indices of a dataloader, including those of earlier batches."""
        self.indices_known[dataloader_idx] = False
        for key, metric in self.metrics.items():
            if key[0] == dataloader_idx:
                metric.indices.clear()

    def metric_of(self, dataset: Any) -> RetrievalScores | RevisitedMAP:
        """The metric of a data set: `RevisitedMAP` if it has a `ground_truth`, otherwise `RetrievalScores`."""
        ground_truth = ground_truth_of(dataset)
        if ground_truth is None:
            return RetrievalScores(self.scores, self.ks, ignore_index=IGNORED_LABEL, progress=self.progress)
        return RevisitedMAP([GroundTruth(*parts) for parts in ground_truth], self.ks, ignore_index=IGNORED_LABEL)

    def search(self, trainer: Trainer, names: Sequence[int | str]) -> Iterator[tuple[int, str, SearchResult]]:
        """Yields (dataloader index, kind, search result) for each metric.

        Args:
            trainer: the Trainer that evaluates.
            names: names of the dataloaders.

        Raises:
            ValueError: if a dataloader yielded no batch, or yielded the same items on all processes.
        """
        evaluated = {dataloader_idx for dataloader_idx, _ in self.metrics}
        empty = [str(name) for dataloader_idx, name in enumerate(names) if dataloader_idx not in evaluated]
        if empty:
            raise ValueError(f"Nothing to score: no batch came from dataloader {', '.join(empty)}.")
        for (dataloader_idx, kind), metric in self.metrics.items():
            if not self.indices_known[dataloader_idx]:
                check_processes_differ(trainer, metric, names[dataloader_idx])
            with metric.sync_context():
                result = metric.search()
            yield dataloader_idx, kind, result


def update_metric(
    metric: RetrievalScores | RevisitedMAP,
    embeddings: Tensor,
    labels: Tensor,
    indices: Tensor | None,
    roles: Mapping[str, Tensor],
) -> None:
    """Adds embeddings (b, D), labels (b,), indices (b,), if known, and the roles of these items to a metric."""
    batch_roles = {} if indices is None else {name: values[indices] for name, values in roles.items()}
    metric.update(embeddings, labels.to(embeddings.device), indices, **batch_roles)


def embeddings_of_batch(trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any) -> Tensor:
    """Embeddings (b, D) of a batch: the "embeddings" that the step returned, otherwise those of forward.

    Raises:
        ValueError: if the step returned no embeddings and the batch is not a pair (inputs, labels), or the embeddings
            are not a tensor (b, D).
    """
    if isinstance(outputs, Mapping) and "embeddings" in outputs:
        embeddings, source = outputs["embeddings"], "validation_step or test_step"
    else:
        inputs, source = evaluation_inputs(batch), "forward"
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            embeddings = pl_module(inputs)
    size = len(evaluation_labels(outputs, batch))
    if not (isinstance(embeddings, Tensor) and embeddings.ndim == 2 and len(embeddings) == size):
        got = type_and_shape(embeddings)
        raise ValueError(f"{source} of {type(pl_module).__name__} must give embeddings ({size}, D), got {got}.")
    return embeddings
