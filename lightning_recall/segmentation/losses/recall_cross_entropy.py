"""Recall loss: "Striking the Right Balance: Recall Loss for Semantic Segmentation", ICRA 2022."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from lightning_recall.checks import check_integer
from lightning_recall.segmentation.losses.inputs import (
    check_classes,
    check_shapes,
    number_of_processes,
    split_ignored,
)
from lightning_recall.segmentation.losses.pixel_cross_entropy import in_closed_form, right_pixels
from lightning_recall.tensors import at_least_float32

Reduction = Literal["mean", "weighted_mean", "sum", "none"]
REDUCTIONS = ("mean", "weighted_mean", "sum", "none")
BLOCK_ELEMENTS = 2**18  # logits that are compared at a time: they stay in the cache of a processor


class RecallCrossEntropyLoss(nn.Module):
    """Cross-entropy in which each class is weighted by 1 - its recall: classes that the network misses count most.

    With GT_c the number of pixels of class c in the batch, FN_c the number of these that are predicted as another
    class, and CE_i the cross-entropy of pixel i with class y_i:

        w_c = 1 - recall_c = FN_c / GT_c, a constant for the gradient
        loss = mean over valid pixels i of w_(y_i) CE_i

    Source: Tian et al., ICRA 2022 (arXiv 2106.14917). If all pixels are wrong, this is `F.cross_entropy`. If all
    classes have equally many wrong pixels, the weights are inversely proportional to the class frequencies.

    A pixel counts as right if the probability of its class is above all others. A tie is wrong, so that a network with
    equal logits everywhere, or one in bfloat16, gets full weights.

    With several processes, FN and GT are summed over the processes before the division, in training with gradients
    enabled. The mean over processes of the loss and of its gradient is that of one process with the whole batch, also
    for unequal numbers of valid pixels. In evaluation each process is on its own. Computed in fp32 or fp64.

    The gradient is computed in closed form, in the pass that counts. `torch.compile` uses autograd instead, with a
    graph break at the counts, and omits the check of the values of the labels.

    Args:
        num_classes: C, at least 2.
        ignore_index: label of pixels that do not count; None (default): all pixels count.
        momentum: share of the average of earlier batches in the weights, at least 0 and below 1. 0 (default and
            paper): the weights come from the batch alone. The average of a class changes only in training batches that
            contain the class, and starts with the first of them. The buffer `running_weights` holds it. Evaluation
            uses it as it is. Our choice; unused code of the authors carries a similar average with 0.5.
        reduction: "mean" (default, paper): divides by the number of valid pixels; "weighted_mean": by the sum of the
            weights of all pixels, as `F.cross_entropy` does, which keeps the gradient large when recalls are high;
            "sum"; "none": one value per pixel, 0 where ignored.
        min_false_negatives: lower bound of FN_c and GT_c in the weight. 1 (default, released code): a class without
            errors keeps the weight 1 / GT_c; 0: the formula above, where the weight is 0.

    Shapes: logits (B, C, ...) with any number of spatial dimensions, also none; target (B, ...) integers -> scalar, or
    (B, ...) with reduction "none".

    Attributes:
        running_weights: (C,) average weights, -1 for classes not seen yet; None without momentum.

    A batch without valid pixels has loss 0 and a gradient of zeros. Classes that are absent do not change the loss.

    Raises:
        ValueError: for settings out of range, logits or target of another shape or type, and labels out of range.

    >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    >>> target = torch.tensor([0, 0, 0, 1])  # recall 1 and 0: the weights are 1/3 and 1
    >>> round(RecallCrossEntropyLoss(num_classes=2)(logits, target).item(), 4)
    0.5635
    """

    closed_form = True  # whether the gradient is computed in closed form; tests compare both
    running_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = None,
        momentum: float = 0.0,
        reduction: Reduction = "mean",
        min_false_negatives: int = 1,
    ) -> None:
        super().__init__()
        check_classes(num_classes, ignore_index)
        check_integer("min_false_negatives", min_false_negatives, 0)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}.")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.momentum = momentum
        self.reduction = reduction
        self.min_false_negatives = min_false_negatives
        self.register_buffer("running_weights", torch.full((num_classes,), -1.0) if momentum else None)

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        names = ("num_classes", "ignore_index", "momentum", "reduction", "min_false_negatives")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch; see the class for shapes and errors."""
        check_shapes(logits, target, self.num_classes)
        labels, valid = split_ignored(target, self.num_classes, self.ignore_index)
        processes = number_of_processes(self)
        plain = torch.compiler.is_compiling() or not self.closed_form
        with torch.autocast(logits.device.type, enabled=False):
            pixels = None if plain else in_closed_form(logits, labels)
            is_right = right_pixels(logits, labels) if pixels is None else pixels.is_right
            counts = count_pixels(labels, is_right, valid, self.num_classes)
            if processes > 1:
                distributed.all_reduce(counts)
            weights = class_weights(counts, self.min_false_negatives, torch.promote_types(logits.dtype, torch.float32))
            weights = self.average(weights, counts[1] > 0)
            if pixels is None:
                losses = F.cross_entropy(at_least_float32(logits), labels, reduction="none") * weights[labels]
            else:
                losses = pixels.weighted(logits, labels, weights[labels])
            if valid is not None:
                losses = losses.where(valid, 0)
            if self.reduction == "none":
                return losses
            return losses.sum() * (processes / self.divisor(counts[1], weights))

    def average(self, weights: Tensor, seen: Tensor) -> Tensor:
        """Weights (C,) averaged with those of earlier batches; `seen` (C,) are the classes of this batch."""
        if self.running_weights is None:
            return weights
        known = self.running_weights >= 0
        old = self.running_weights.to(weights.dtype)
        if not (self.training and torch.is_grad_enabled()):
            return torch.where(known, old, weights)
        new = torch.where(known, torch.lerp(weights, old, self.momentum), weights)
        self.running_weights.copy_(torch.where(seen, new, old))
        return new

    def divisor(self, pixels: Tensor, weights: Tensor) -> Tensor:
        """What the sum over pixels is divided by; `pixels` (C,) is the number of each class."""
        if self.reduction == "sum":
            return torch.ones_like(weights[0])
        if self.reduction == "mean":
            return pixels.sum().clamp_min(1).to(weights.dtype)
        total = (pixels * weights).sum()
        return torch.where(total > 0, total, torch.ones_like(total))


@torch.no_grad()
def count_pixels(labels: Tensor, is_right: Tensor, valid: Tensor | None, num_classes: int) -> Tensor:
    """Wrong pixels and all pixels of each class.

    Args:
        labels: (B, ...) int64 from 0 to C - 1.
        is_right: (B, ...) bool.
        valid: (B, ...) bool, the pixels that count; None: all.
        num_classes: C.

    Returns:
        (2, C) int64: false negatives, and pixels.

    >>> count_pixels(torch.tensor([0, 0, 1]), torch.tensor([True, False, True]), None, 2)
    tensor([[1, 0],
            [2, 1]])
    """
    keys = labels + num_classes * is_right
    if valid is not None:
        keys.masked_fill_(~valid, 2 * num_classes)
    wrong, right = keys.flatten().bincount(minlength=2 * num_classes + 1)[:-1].view(2, num_classes)
    return torch.stack([wrong, wrong + right])


def class_weights(counts: Tensor, minimum: int, dtype: torch.dtype) -> Tensor:
    """1 - recall of each class (C,) from the counts (2, C); 1 for classes without pixels if `minimum` is above 0.

    >>> class_weights(torch.tensor([[1, 0, 0], [4, 2, 0]]), 1, torch.float32)
    tensor([0.2500, 0.5000, 1.0000])
    """
    wrong, pixels = counts
    weights: Tensor = wrong.clamp_min(minimum).to(dtype) / pixels.clamp_min(max(minimum, 1)).to(dtype)
    return weights
