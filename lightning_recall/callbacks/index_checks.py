"""What cannot be scored while the rows of batches are not known."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_recall._lightning import Trainer
from lightning_recall.callbacks.batches import named_loaders
from lightning_recall.callbacks.index_recorder import REMEDY, recorder_of
from lightning_recall.data.attributes import ground_truth_of
from lightning_recall.metrics import RetrievalScores, RevisitedMAP


def check_recorded(loaders: Any, reason: str) -> None:
    """Refuses dataloaders whose rows cannot be known, before anything is evaluated.

    Raises:
        ValueError: in that case, with the reason why they are needed.
    """
    for name, loader in named_loaders(loaders).items():
        if recorder_of(loader) is None:
            raise ValueError(
                f"{reason}, but those of dataloader {name} ({type(loader).__name__}) are not known: {REMEDY}."
            )


def check_needless(trainer: Trainer, loader: Any, roles: dict[str, Tensor], reason: str = "") -> None:
    """Refuses a dataloader whose rows are not known, but needed.

    Args:
        trainer: that evaluates.
        loader: the dataloader.
        roles: of the rows (N,) of its data set.
        reason: why they are needed in any case; "": only where data set or processes need them.

    Raises:
        ValueError: if its data set has roles or a ground truth, or a distributed sampler may repeat some of its rows.
    """
    dataset = getattr(loader, "dataset", None)
    if roles:
        reason = f"it has {' and '.join(roles)}"
    elif ground_truth_of(dataset) is not None:
        reason = "it has a ground truth"
    elif trainer.world_size > 1 and isinstance(loader, DataLoader) and not isinstance(dataset, IterableDataset):
        reason = "several processes may evaluate the same rows"
    if reason:
        raise ValueError(
            f"Which rows of its {type(dataset).__name__} a batch holds is needed, since {reason}: {REMEDY}."
        )


def check_shares(trainer: Trainer, metric: RetrievalScores | RevisitedMAP, name: str) -> None:
    """Refuses a dataloader that gives all processes the same items: each would find its copy.

    Raises:
        ValueError: if their embeddings are the same.
    """
    if trainer.world_size > 1:
        own = torch.stack([part.double().sum() for part in metric.embeddings]).sum()  # of whole batches, in order
        sums = trainer.strategy.all_gather(own).flatten()
        if torch.equal(sums, sums[:1].expand_as(sums)):
            raise ValueError(
                f"All {trainer.world_size} processes evaluate the same items ({name}): "
                "give each process a part of its own, or evaluate on one."
            )
