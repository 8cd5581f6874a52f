"""Raises errors if data set indices are required but unknown."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_recall._lightning import Trainer
from lightning_recall.callbacks.dataloaders import named_loaders
from lightning_recall.callbacks.index_recorder import HINT, recorder_of
from lightning_recall.data.attributes import ground_truth_of
from lightning_recall.metrics import RetrievalScores, RevisitedMAP


def check_recorded(loaders: Any, reason: str) -> None:
    """Raises an error before the first batch if the indices of a dataloader cannot be recorded.

    Raises:
        ValueError: if indices cannot be recorded; the message states the reason why they are needed.
    """
    for name, loader in named_loaders(loaders).items():
        if recorder_of(loader) is None:
            raise ValueError(
                f"{reason}, but the indices of dataloader {name} ({type(loader).__name__}) cannot be recorded: {HINT}."
            )


def raise_if_indices_required(trainer: Trainer, loader: Any, roles: dict[str, Tensor], reason: str = "") -> None:
    """Raises an error if the indices of a dataloader are required. Called when they are unknown.

    Args:
        trainer: the Trainer that evaluates.
        loader: the dataloader.
        roles: `is_query`, `is_gallery` and `groups` (N,), those that its data set defines.
        reason: why the caller requires the indices; "" if it does not. Data sets with roles or a ground truth
            always require them, and so do map-style data sets on several processes.

    Raises:
        ValueError: if there is a reason, the data set has roles or a ground truth, or a distributed sampler may repeat
            some of its items.
    """
    dataset = getattr(loader, "dataset", None)
    if roles:
        reason = f"it has {' and '.join(roles)}"
    elif ground_truth_of(dataset) is not None:
        reason = "it has a ground truth"
    elif trainer.world_size > 1 and isinstance(loader, DataLoader) and not isinstance(dataset, IterableDataset):
        reason = "several processes may evaluate the same items"
    if reason:
        raise ValueError(
            f"The indices of each batch of {type(dataset).__name__} are required, because {reason}: {HINT}."
        )


def check_processes_differ(trainer: Trainer, metric: RetrievalScores | RevisitedMAP, name: int | str) -> None:
    """Raises an error if all processes evaluate the same items: each item would retrieve its own copy.

    Raises:
        ValueError: if the embeddings of all processes are the same.
    """
    if trainer.world_size > 1:
        # summed batch by batch, so that equal data give bit-equal sums
        local_sum = torch.stack([part.double().sum() for part in metric.embeddings]).sum()
        sums = trainer.strategy.all_gather(local_sum).flatten()
        if torch.equal(sums, sums[:1].expand_as(sums)):
            raise ValueError(
                f"All {trainer.world_size} processes evaluate the same items of dataloader {name}: "
                "use a distributed sampler, or evaluate with one process."
            )
