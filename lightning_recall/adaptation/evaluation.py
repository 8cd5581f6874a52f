"""Scores of both domains in an evaluation, in which each image counts once over all processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_recall._lightning import Trainer, callbacks_of, rank_zero_warn
from lightning_recall.adaptation.batches import DOMAINS
from lightning_recall.adaptation.scores import ACCURACIES, VALIDATORS, DomainScores
from lightning_recall.batch import type_and_shape
from lightning_recall.callbacks.dataloaders import check_loaders, named_loaders
from lightning_recall.callbacks.own_images import OwnImages
from lightning_recall.callbacks.validation_history import Validation, ValidationHistory
from lightning_recall.optimization.monitors import LoggedMetrics

TITLE = "Classification of the val split, in %"
SOURCE_ACCURACY = "val/source/accuracy"
LOGGED = {"source": ("loss", *ACCURACIES), "target": (*ACCURACIES, *VALIDATORS)}
"""domain -> names of the scores that are logged"""
NEEDS_LABELS = tuple(f"val/target/{name}" for name in ACCURACIES)
"""keys of validation scores for which the target's labels are read"""


class Evaluation:
    """Collects the scores of the images of one dataloader.

    Images that a DistributedSampler repeats are left out.

    Args:
        loader: the dataloader, as the Trainer has prepared it.
        num_classes: K.
        device: device of the counts.
    """

    def __init__(self, loader: Any, num_classes: int, device: torch.device) -> None:
        self.images = OwnImages(loader)
        self.scores = DomainScores(num_classes).to(device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds logits (B, K) and labels (B,) of a batch."""
        count = self.images.num_counted(len(labels))
        self.scores.update(logits[:count], labels[:count])

    def result(self, split: str, domain: str) -> dict[str, Tensor]:
        """The scores over all processes.

        Args:
            split: "val" or "test", for the message.
            domain: "source" or "target", for the message.

        Raises:
            ValueError: without images.
        """
        scores = self.scores.compute()
        if not scores:
            raise ValueError(f"The {domain} dataloader of the {split} split has no images: check its data.")
        return scores


class DomainHistory(ValidationHistory):
    """Validation scores of an adaptation: the accuracies on both domains.

    The best validation is the one with the highest monitored score. Without a monitor it is that with the highest
    source accuracy, and without source images it is the last. Target labels are used only if a monitor names their
    score.
    """

    def __init__(self) -> None:
        super().__init__(TITLE, {"accuracy": ACCURACIES["accuracy"]})  # five columns would be wider than a screen

    def best(self, monitor: str | None = None) -> Validation:
        """The validation with the highest score; the first of equal ones."""
        last = self.validations[-1].scores
        if monitor not in last and SOURCE_ACCURACY not in last:
            return self.validations[-1]
        return super().best(monitor if monitor in last else SOURCE_ACCURACY)

    def column_title(self, key: str) -> str:
        """Title of a column: target accuracy for "val/target/accuracy"."""
        _, domain, name = key.split("/")
        return f"{domain} {(ACCURACIES | VALIDATORS).get(name, name)}"

    def text(self, key: str, score: float) -> str:
        """Accuracies in percent; validators and losses as they are."""
        return super().text(key, score) if key.rpartition("/")[2] in ACCURACIES else f"{score:.3f}"


def domain_loaders(loaders: Any) -> dict[str, Any]:
    """Evaluation dataloaders by domain; a single dataloader holds the target.

    Args:
        loaders: the Trainer's dataloaders: {"source": loader, "target": loader}, one of the two, or a single loader.

    Raises:
        ValueError: for other dataloaders.
    """
    if isinstance(loaders, Mapping) and loaders and set(loaders) <= set(DOMAINS):
        check_loaders(loaders)
        return {str(name): loader for name, loader in loaders.items()}
    if not isinstance(loaders, Mapping | list | tuple):
        return {"target": loaders}
    names = [str(name) for name in named_loaders(loaders)]
    raise ValueError(
        'Evaluation dataloaders must be {"source": loader, "target": loader}, or a single loader of target images, got '
        f"{type_and_shape(loaders) if isinstance(loaders, Mapping) else f'{len(names)} dataloaders without names'}."
    )


def scores_by_key(split: str, results: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The scores that are logged: {"val/target/accuracy": score, ...}.

    Args:
        split: "val" or "test".
        results: domain -> result of `DomainScores.compute`.
    """
    return {
        f"{split}/{domain}/{name}": result[name]
        for domain, result in results.items()
        for name in LOGGED[domain]
        if name in result
    }


def logged_metrics(trainer: Trainer) -> LoggedMetrics:
    """The keys that training and validation log.

    Args:
        trainer: the Trainer, at the start of training.
    """
    loaders = trainer.val_dataloaders
    domains: Sequence[str] = DOMAINS if loaders is None else list(domain_loaders(loaders))
    domains = domains if trainer.enable_validation else ()
    keys = [f"val/{domain}/{name}" for domain in domains for name in LOGGED[domain]]
    losses = ["train/loss", *(key for key in keys if key.endswith("/loss"))]
    scores = [key for key in keys if key not in losses]
    return LoggedMetrics([*losses, *scores], ["train/"], losses, scores, "a validation dataloader")


def label_monitors(trainer: Trainer) -> list[str]:
    """Callbacks and schedulers that monitor a score for which the target's labels are read, in words."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    owners = [*callbacks_of(trainer), *schedulers]
    monitors = [(type(owner).__name__, getattr(owner, "monitor", None)) for owner in owners]
    return [f"{name} monitors {monitor}" for name, monitor in monitors if monitor in NEEDS_LABELS]


def warn_of_target_labels(trainer: Trainer) -> None:
    """Warns if target labels choose a checkpoint, the end of training or a learning rate."""
    found = label_monitors(trainer)
    if found:
        rank_zero_warn(
            f"{' and '.join(found)}, which uses labels of the target domain: the scores of the chosen model are too "
            "high for a domain without labels. To choose without them, monitor val/source/accuracy or "
            "val/target/information_maximization."
        )


def check_target_labels(trainer: Trainer, logged: Mapping[str, Any]) -> None:
    """Raises ValueError if a target accuracy is monitored, but the target's validation images have no labels."""
    found = label_monitors(trainer)
    if found and not any(key in logged for key in NEEDS_LABELS):
        raise ValueError(
            f"{' and '.join(found)}, but the validation images of the target have no labels: monitor "
            "val/source/accuracy or val/target/information_maximization."
        )
