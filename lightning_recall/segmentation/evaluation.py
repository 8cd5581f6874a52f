"""Scores and loss of one dataloader, in which each image counts once over all processes."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchmetrics import MeanMetric

from lightning_recall.segmentation.scores import SegmentationScores


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
        self.loss = MeanMetric(nan_strategy="disable").to(device)  # each batch weighted by its number of images
        self.is_empty = True

    def num_counted(self, size: int) -> int:
        """How many of the next `size` images count; the others are repeated."""
        counted = size if self.remaining is None else min(size, self.remaining)
        self.remaining = None if self.remaining is None else self.remaining - counted
        return counted

    def update(self, predictions: Tensor, target: Tensor, loss: Tensor) -> None:
        """Adds predictions and target (b, H, W), b at least 1, and their loss."""
        self.scores.update(predictions, target)
        self.loss.update(loss.detach(), len(target))


def num_own_images(loader: Any) -> int | None:
    """How many different images a process gets; None if the dataloader does not repeat any.

    A DistributedSampler gives process r of n the positions r, r + n, r + 2n, ... of a list whose end is padded.
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]  # a data set with a sampler has a length
