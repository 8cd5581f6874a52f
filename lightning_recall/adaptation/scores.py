"""Scores of one domain: accuracy, and validators that need no labels."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_recall.adaptation.batches import NO_LABEL, check_labels
from lightning_recall.checks import check_integer, check_tensors

ACCURACIES = {"accuracy": "accuracy", "mean_class_accuracy": "mean class accuracy"}
"""name of a score that needs labels -> its title in tables; higher is better"""
VALIDATORS = {"information_maximization": "IM", "bnm": "BNM", "negative_entropy": "negative entropy"}
"""name of a score that needs no labels -> its title in tables; higher is better"""


class DomainScores(Metric):
    """Accuracy and loss of the labelled images of a domain, and validators of all its images.

    With n_ij the number of images of class i that are predicted as class j:

        accuracy = sum_i n_ii / sum_ij n_ij    mean_class_accuracy = mean_i (n_ii / sum_j n_ij)

    A class without labelled images has no part in the mean, as in sklearn.metrics.balanced_accuracy_score. `loss` is
    the mean cross-entropy. Images with label -1 count for the validators only.

    The validators estimate how good the predictions of an unlabelled domain are. With P (N, K) the softmax predictions
    of N images, H the entropy in nats, p_n a row and p the mean of the rows:

        negative_entropy = -mean_n H(p_n)                          from -log K to 0
        information_maximization = H(p) - mean_n H(p_n)            from 0 to log K
        bnm = (sum of the singular values of P) / N                from 0 to sqrt(K / N)

    Information maximization is the negative of SHOT's loss (arXiv 2002.08546), and equals the mutual information
    between image and predicted class. BNM is batch nuclear-norm maximization (arXiv 2003.12237), with all N images as
    one batch. It depends on N, so compare it between evaluations of the same images. arXiv 2208.07360 compares such
    validators.

    `negative_entropy` and `bnm` equal pytorch-adapt's EntropyValidator and BNMValidator on the same logits.
    `information_maximization` equals its IMValidator, except that the latter, like SHOT, adds a small number inside the
    logarithm of the mean prediction. pytorch-adapt passes the target's training images to its validators; here they are
    the images of the evaluation loader.

    The results do not depend on how the images are split into batches and processes, except for rounding errors of
    float64. Counts are exact. P itself is not kept: a triangular factor R (K, K) with R^T R = P^T P has its singular
    values. The squared matrix P^T P would lose half of the digits.

    Args:
        num_classes: K, at least 2.

    Shapes: `update` takes logits (B, K) and labels (B,), integers from 0 to K - 1, or -1 for no label.

    Attributes:
        confusion: (K, K) int64, n_ij.

    Raises:
        ValueError: for settings out of range, other shapes, and labels out of range.

    >>> scores = DomainScores(num_classes=2)
    >>> scores.update(torch.tensor([[9.0, -9.0], [9.0, -9.0], [-9.0, 9.0]]), torch.tensor([0, 1, -1]))
    >>> result = scores.compute()
    >>> result["accuracy"].item(), round(result["information_maximization"].item(), 4)
    (0.5, 0.6365)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    confusion: Tensor
    loss: Tensor
    num_images: Tensor
    predictions: Tensor
    entropy: Tensor
    factor: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_integer("num_classes", num_classes, 2)
        self.num_classes = num_classes
        square, scalar = (num_classes, num_classes), ()
        self.add_state("confusion", torch.zeros(square, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_images", torch.zeros(scalar, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss", torch.zeros(scalar, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("predictions", torch.zeros(num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("entropy", torch.zeros(scalar, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("factor", torch.zeros(square, dtype=torch.float64), dist_reduce_fx=triangular_factor)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds the images of a batch, which may be empty."""
        check_tensors(logits=logits, labels=labels)
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"logits must have shape (B, {self.num_classes}) and labels (B,), got {tuple(logits.shape)} and "
                f"{tuple(labels.shape)}."
            )
        check_labels(labels, self.num_classes, allow_missing=True)
        has_label = labels != NO_LABEL
        log_softmax = logits.double().log_softmax(1)
        softmax = log_softmax.exp()
        pairs = labels[has_label].long() * self.num_classes + logits[has_label].argmax(1)
        self.confusion += pairs.bincount(minlength=self.num_classes**2).view_as(self.confusion)
        self.loss -= log_softmax[has_label].gather(1, labels[has_label].long()[:, None]).sum()
        self.num_images += len(logits)
        self.predictions += softmax.sum(0)
        self.entropy += torch.special.entr(softmax).sum()
        self.factor = triangular_factor(torch.cat([self.factor, softmax]))

    def compute(self) -> dict[str, Tensor]:
        """The scores in float64, and "confusion"; without labels no accuracies and no loss, without images nothing."""
        if self.num_images == 0:
            return {}
        scores = {"confusion": self.confusion, **validators_of(self)}
        counts = self.confusion.double()
        if counts.sum() > 0:
            right, images = counts.diag(), counts.sum(1)
            scores["accuracy"] = right.sum() / images.sum()
            scores["mean_class_accuracy"] = (right / images).nanmean()  # 0 / 0 is NaN
            scores["loss"] = self.loss / images.sum()
        return scores


def validators_of(metric: DomainScores) -> dict[str, Tensor]:
    """The validators of all images of a metric; see `DomainScores`."""
    mean_entropy = metric.entropy / metric.num_images
    diversity = torch.special.entr(metric.predictions / metric.num_images).sum()
    is_finite = bool(metric.factor.isfinite().all())  # after a diverged training it is not, and svdvals would raise
    nuclear_norm = torch.linalg.svdvals(metric.factor).sum() if is_finite else metric.factor.new_tensor(torch.nan)
    return {
        "information_maximization": diversity - mean_entropy,
        "bnm": nuclear_norm / metric.num_images,
        "negative_entropy": -mean_entropy,
    }


def triangular_factor(rows: Tensor) -> Tensor:
    """A matrix R (K, K) whose singular values are those of rows (..., K); there must be at least K rows.

    >>> triangular_factor(torch.tensor([[3.0, 0.0], [4.0, 0.0], [0.0, 2.0]])).abs()
    tensor([[5., 0.],
            [0., 2.]])
    """
    factor: Tensor = torch.linalg.qr(rows.flatten(0, -2), mode="r").R
    return factor
