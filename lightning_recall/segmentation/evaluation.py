"""Scores and loss of one dataloader, in which each image counts once over all processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_recall._lightning import Trainer
from lightning_recall.callbacks.dataloaders import named_loaders
from lightning_recall.callbacks.own_images import OwnImages
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

    `images` says which images count: those that a DistributedSampler repeats are left out.

    Args:
        loader: the dataloader, as the Trainer has prepared it.
        num_classes: C.
        ignore_index: label of pixels that do not count; None: all pixels count.
        device: device of the counts.
    """

    def __init__(self, loader: Any, num_classes: int, ignore_index: int | None, device: torch.device) -> None:
        self.images = OwnImages(loader)
        self.scores = SegmentationScores(num_classes, ignore_index).to(device)
        self.loss = MeanLoss().to(device)

    def update(self, predictions: Tensor, target: Tensor, loss: Tensor) -> None:
        """Adds predictions and target (b, H, W), and their mean loss; b may be 0."""
        self.scores.update(predictions, target)
        self.loss.update(loss, len(target))


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
