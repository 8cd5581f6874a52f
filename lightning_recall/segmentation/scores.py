"""Scores of a segmentation from one confusion matrix: IoU, recall and precision of each class, and their means."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix

from lightning_recall.checks import check_integer, check_tensors
from lightning_recall.tensors import holds_integers

MEANS = {
    "miou": "mIoU",
    "mean_accuracy": "mean accuracy",
    "mean_precision": "mean precision",
    "pixel_accuracy": "pixel accuracy",
}
"""name of a score -> its title in tables"""
PER_CLASS = ("iou", "accuracy", "precision")


class SegmentationScores(Metric):
    """IoU, accuracy (recall) and precision of each class, and their means over classes.

    With n_ij the number of pixels of class i that are predicted as class j, t_i = sum_j n_ij pixels of class i, and
    p_i = sum_j n_ji pixels predicted as class i, over all images (not averaged per image):

        iou_i = n_ii / (t_i + p_i - n_ii)    accuracy_i = n_ii / t_i    precision_i = n_ii / p_i
        pixel_accuracy = sum_i n_ii / sum_i t_i    pixel_fraction_i = t_i / sum_j t_j

    A class that has no pixels and is never predicted has no scores (NaN) and no part in the means. A class that has
    pixels and is never predicted has precision 0, so that ignoring a rare class does not raise the mean precision. A
    class without pixels that is predicted has IoU 0 and precision 0, and no accuracy. `miou` and `mean_precision` are
    therefore means over classes with pixels or predictions, as torchmetrics' MulticlassJaccardIndex and
    MulticlassPrecision with `average="macro"`; `mean_accuracy` is a mean over classes with pixels, as
    sklearn.metrics.balanced_accuracy_score. mmsegmentation has the same IoU and accuracy. Its mean precision leaves out
    classes that are never predicted.

    The counts are integers, summed over processes. Without valid pixels, all scores are NaN.

    Args:
        num_classes: C, at least 2.
        ignore_index: label of pixels that do not count; None: all pixels count.

    Shapes: predictions (B, H, W) integers, or logits (B, C, H, W); target (B, H, W) integers. Any number of spatial
    dimensions is accepted.

    Attributes:
        confusion: (C, C) int64, n_ij.

    Raises:
        ValueError: for settings out of range, predictions and target of different size, and labels out of range.

    >>> scores = SegmentationScores(num_classes=3, ignore_index=255)
    >>> scores.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 255]]))
    >>> result = scores.compute()
    >>> round(result["miou"].item(), 4), result["iou"].tolist()
    (0.5, [0.5, 0.5, nan])
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, ignore_index: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_integer("num_classes", num_classes, 2)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")

    def update(self, predictions: Tensor, target: Tensor) -> None:
        """Adds the pixels of a batch."""
        check_tensors(predictions=predictions, target=target)
        if predictions.ndim == target.ndim + 1:
            predictions = predictions.argmax(1)
        check_pair(predictions, target)
        self.check_labels(predictions, target)
        self.confusion += multiclass_confusion_matrix(
            predictions.long(), target.long(), self.num_classes, ignore_index=self.ignore_index, validate_args=False
        )

    def check_labels(self, predictions: Tensor, target: Tensor) -> None:
        """Raises ValueError for classes that do not exist."""
        is_valid = (
            torch.ones_like(target, dtype=torch.bool) if self.ignore_index is None else target != self.ignore_index
        )
        for name, values in (("target", target[is_valid]), ("predictions", predictions[is_valid])):
            if len(values) and not 0 <= values.min() <= values.max() < self.num_classes:
                raise ValueError(
                    f"{name} must hold classes from 0 to {self.num_classes - 1}, or ignore_index ({self.ignore_index}) "
                    f"in the target, got values from {values.min()} to {values.max()}."
                )

    def compute(self) -> dict[str, Tensor]:
        """All scores in float64: scalars for `MEANS`, and (C,) for `PER_CLASS` and "pixel_fraction"."""
        return scores_of(self.confusion)


def scores_of(confusion: Tensor) -> dict[str, Tensor]:
    """Scores of a confusion matrix (C, C), rows by class and columns by prediction; see `SegmentationScores`."""
    counts = confusion.double()
    right, pixels, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    union = pixels + predicted - right
    occurs = union > 0
    scores = {
        "iou": right / union,  # 0 / 0 is NaN
        "accuracy": right / pixels,
        "precision": torch.where(occurs, right / predicted.clamp_min(1), torch.nan),
        "pixel_fraction": pixels / pixels.sum(),
    }
    means = {
        "miou": scores["iou"].nanmean(),
        "mean_accuracy": scores["accuracy"].nanmean(),
        "mean_precision": scores["precision"].nanmean(),
        "pixel_accuracy": right.sum() / pixels.sum(),
    }
    return {**means, **scores}


def flat_scores(scores: Mapping[str, Tensor], keys: Sequence[str]) -> dict[str, Tensor]:
    """The means as {"miou": value, ...}, and the scores of each class as {"iou/car": value, ...}.

    Args:
        scores: result of `SegmentationScores.compute`.
        keys: name of each class in keys.
    """
    means = {name: scores[name] for name in MEANS}
    of_classes = {f"{score}/{key}": scores[score][number] for score in PER_CLASS for number, key in enumerate(keys)}
    return {**means, **of_classes}


def check_pair(predictions: Tensor, target: Tensor) -> None:
    """Raises ValueError unless predictions and target are integers of the same shape."""
    if predictions.shape != target.shape:
        raise ValueError(
            f"predictions and target must have the same shape (B, H, W), got {tuple(predictions.shape)} and "
            f"{tuple(target.shape)}."
        )
    for name, values in (("predictions", predictions), ("target", target)):
        if not holds_integers(values):
            raise ValueError(f"{name} must hold classes as integers, got {values.dtype}: convert them with .long().")
