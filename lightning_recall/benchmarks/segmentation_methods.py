"""The losses that the benchmark `segmentation` compares, and the class weights of the literature."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_recall.segmentation.data import IGNORED_PIXEL
from lightning_recall.segmentation.losses import RecallCrossEntropyLoss, StructuralSimilarityLoss


class PixelCounts(NamedTuple):
    """Pixels of the training masks.

    images: (N, C) pixels of each class in each image, without ignored pixels.
    """

    images: NDArray[np.int64]

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.images.shape[1])

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """(C,) fraction of each class among all pixels."""
        totals = self.images.sum(0)
        return np.asarray(totals / totals.sum(), dtype=np.float64)

    def rarest(self, count: int) -> NDArray[np.int64]:
        """The classes with the fewest pixels."""
        return np.argsort(self.images.sum(0), kind="stable")[:count]


def inverse_frequency(counts: PixelCounts) -> Tensor:
    """Weights (C,) 1 / frequency, with mean 1.

    >>> inverse_frequency(PixelCounts(np.array([[6, 2], [0, 0]])))
    tensor([0.5000, 1.5000])
    """
    weights = 1 / np.maximum(counts.frequencies, 1e-12)
    return torch.from_numpy(weights / weights.mean()).float()


def median_frequency(counts: PixelCounts) -> Tensor:
    """Weights (C,) median frequency / frequency, as SegNet has them (arXiv 1511.00561, after Eigen and Fergus).

    The frequency of a class here is its pixels divided by the pixels of all images in which it occurs.

    >>> median_frequency(PixelCounts(np.array([[6, 2, 0], [4, 0, 4]])))  # frequencies 10 / 16, 2 / 8, 4 / 8
    tensor([0.8000, 2.0000, 1.0000])
    """
    images = counts.images
    pixels_of_images = ((images > 0) * images.sum(1, keepdims=True)).sum(0)
    frequencies = images.sum(0) / np.maximum(pixels_of_images, 1)
    return torch.from_numpy(np.median(frequencies) / np.maximum(frequencies, 1e-12)).float()


class HardPixelLoss(nn.Module):
    """Cross-entropy of the pixels with the largest losses: online hard example mining (OHEM).

    Args:
        keep: fraction of the valid pixels that counts; the recall loss paper compares with 0.7.

    Shapes: logits (B, C, H, W), target (B, H, W) -> scalar.

    >>> logits = torch.tensor([[5.0, 0.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)
    >>> HardPixelLoss(keep=0.5)(logits, torch.tensor([[[0], [1]]]))  # the second pixel is undecided: log 2
    tensor(0.6931)
    """

    def __init__(self, keep: float = 0.7) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of the hardest pixels."""
        losses = F.cross_entropy(logits, target, ignore_index=IGNORED_PIXEL, reduction="none")[target != IGNORED_PIXEL]
        return losses.topk(max(1, round(self.keep * len(losses)))).values.mean() if len(losses) else logits.sum() * 0


def smp_loss(name: str, **settings: Any) -> Callable[[PixelCounts], nn.Module]:
    """Returns a function that builds a loss of segmentation-models-pytorch, which must be installed."""

    def build(_: PixelCounts) -> nn.Module:
        from segmentation_models_pytorch import losses

        loss: nn.Module = getattr(losses, name)("multiclass", ignore_index=IGNORED_PIXEL, **settings)
        return loss

    return build


def cross_entropy(weights: Callable[[PixelCounts], Tensor] | None = None) -> Callable[[PixelCounts], nn.Module]:
    """Returns a function that builds cross-entropy with class weights."""
    return lambda counts: nn.CrossEntropyLoss(weights and weights(counts), ignore_index=IGNORED_PIXEL)


def ours(loss: Callable[..., nn.Module], **settings: Any) -> Callable[[PixelCounts], nn.Module]:
    """Returns a function that builds a loss of this package."""
    return lambda counts: loss(counts.num_classes, ignore_index=IGNORED_PIXEL, **settings)


METHODS: dict[str, Callable[[PixelCounts], nn.Module]] = {
    "cross-entropy": cross_entropy(),
    "recall": ours(RecallCrossEntropyLoss),
    "inverse frequency": cross_entropy(inverse_frequency),
    "SSL, sigmoid": ours(StructuralSimilarityLoss),
    "recall, momentum 0.9": ours(RecallCrossEntropyLoss, momentum=0.9),
    "recall, weighted mean": ours(RecallCrossEntropyLoss, reduction="weighted_mean"),
    "median frequency": cross_entropy(median_frequency),
    "focal (SMP)": smp_loss("FocalLoss", gamma=1.0),  # gamma of the recall loss paper's comparison
    "OHEM": lambda _: HardPixelLoss(),
    "Dice (SMP)": smp_loss("DiceLoss"),
    "Lovasz (SMP)": smp_loss("LovaszLoss"),
    "SSL, softmax": ours(StructuralSimilarityLoss, activation="softmax"),
    "BCE": ours(StructuralSimilarityLoss, ce_weight=1.0),  # the base of SSL
}
"""name -> builds the loss from the pixel counts of the training masks; the order is that of the runs"""
