"""Scores and loss of one dataloader, in which each image counts once over all processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchmetrics import Metric

from lightning_recall._lightning import Trainer
from lightning_recall.callbacks.dataloaders import named_loaders
from lightning_recall.optimization.monitors import LoggedMetrics
from lightning_recall.segmentation.scores import MEANS, PER_CLASS, SegmentationScores


class MeanLoss(Metric):
    """Mean of the losses of batches, weighted by their numbers of images; unlike MeanMetric it does not drop NaN."""

    full_state_update = False
    total: Tensor
    num_images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, num_images: int) -> None:
        """Adds the mean loss of a batch."""
        self.total += loss.detach().double() * num_images
        self.num_images += num_images

    def compute(self) -> Tensor:
        """The mean over all images."""
        return self.total / self.num_images


class Evaluation:
    """Collects the scores and the loss of the images of one dataloader.

    torch's DistributedSampler repeats images so that all processes get equally many; the repeated ones are left out.

    Args:
        loader: the dataloader, as the Trainer has prepared it.
        num_classes: C.
        ignore_index: label of pixels that do not count; None: all pixels count.
        device: device of the counts.
    """

    def __init__(self, loader: Any, num_classes: int, ignore_index: int | None, device: torch.device) -> None:
        self.remaining = num_own_images(loader)
        self.scores = SegmentationScores(num_classes, ignore_index).to(device)
        self.loss = MeanLoss().to(device)

    def num_counted(self, size: int) -> int:
        """How many of the next `size` images count; the others are repeated."""
        counted = size if self.remaining is None else min(size, self.remaining)
        self.remaining = None if self.remaining is None else self.remaining - counted
        return counted

    def update(self, predictions: Tensor, target: Tensor, loss: Tensor) -> None:
        """Adds predictions and target (b, H, W), and their mean loss; b may be 0."""
        self.scores.update(predictions, target)
        self.loss.update(loss, len(target))


def num_own_images(loader: Any) -> int | None:
    """How many different images a process gets; None if the dataloader does not repeat any.

    A DistributedSampler gives process r of n the positions r, r + n, r + 2n, ... of a list whose end is padded.
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]  # a data set with a sampler has a length


def loaders_of(trainer: Trainer) -> Any:
    """The dataloaders that the Trainer evaluates."""
    return trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders


def checks_all_batches(trainer: Trainer) -> bool:
    """Whether the sanity check covers all validation batches."""
    return list(trainer.num_sanity_val_batches) == list(trainer.num_val_batches)


def logged_metrics(trainer: Trainer, class_keys: Sequence[str]) -> LoggedMetrics:
    """The keys that training and validation log.

    Args:
        trainer: the Trainer, at the start of training.
        class_keys: name of each class in keys.
    """
    loaders = trainer.val_dataloaders
    names = [""] if loaders is None else [f"{name}/" for name in named_loaders(loaders)]
    names = [""] if len(names) == 1 else names
    names = names if trainer.enable_validation else []
    scores = [*MEANS, *(f"{score}/{key}" for score in PER_CLASS for key in class_keys)]
    losses = ["train/loss", *(f"val/{name}loss" for name in names)]
    keys = [f"val/{name}{score}" for name in names for score in scores]
    return LoggedMetrics([*losses, *keys], [], losses, keys, "a validation dataloader")
