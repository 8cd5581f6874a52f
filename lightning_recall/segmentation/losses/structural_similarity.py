"""SSL: "Correlation Maximized Structural Similarity Loss for Semantic Segmentation", 2019."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from lightning_recall.checks import check_above_zero, check_integer
from lightning_recall.segmentation.losses.inputs import (
    check_classes,
    check_shapes,
    number_of_processes,
    split_ignored,
)
from lightning_recall.segmentation.losses.structural_error import gaussian_window, structural_error, window_shares
from lightning_recall.segmentation.losses.structural_gradient import ClosedFormSimilarity, SimilaritySettings
from lightning_recall.tensors import at_least_float32

Activation = Literal["sigmoid", "softmax"]


class StructuralSimilarityLoss(nn.Module):
    """Cross-entropy with more weight where the structure of the prediction differs from that of the truth.

    For one-hot truth y and probability p of each pixel and class, with mu and sigma the mean and standard deviation in
    a Gaussian window around the pixel, and C4 = 0.01:

        e = |(y - mu_y + C4) / (sigma_y + C4) - (p - mu_p + C4) / (sigma_p + C4)|
        f = 1 if e > beta e_max else 0,  M = sum of f
        loss = lambda mean(CE) + (1 - lambda) sum(e f CE) / M

    Source: Zhao et al., 2019 (arXiv 1910.08711), as restated by Jadon, 2020 (arXiv 2006.14822); the authors published
    no code. What these leave open is an argument. e_max is the maximum of e in the batch. Edges of the image are
    padded by repetition (our choice: zeros would be edges of their own).

    With several processes, e_max, M and the number of pixels are those of all processes, in training with gradients
    enabled. The mean over processes of the loss and of its gradient is that of one process with the whole batch. In
    evaluation each process is on its own. Computed in fp32 or fp64.

    Args:
        num_classes: C, at least 2.
        ignore_index: label of pixels that do not count; None (default): all pixels count. Ignored pixels have weight 0
            in the windows of their neighbours, whose other weights are divided by their sum (our choice).
        ce_weight: lambda, from 0 to 1; 0.5 in third-party code. 1 is the cross-entropy alone.
        threshold: beta, at least 0; 0.1 in third-party code.
        relative_threshold: whether the threshold is a fraction of e_max (default, formula). False: f = 1 if
            e > threshold, as in other third-party code, with 0.3.
        window_size: odd number of pixels, at least 3; 3 in third-party code, other third-party code has 11.
        window_std: standard deviation of the window in pixels, above 0; 1.5 in third-party code.
        activation: "sigmoid" (default, third-party code): p is the sigmoid of each logit and CE the binary
            cross-entropy of each pixel and class. "softmax" (our choice): p is the softmax over classes and
            CE = -y log p, so that mean(CE) is over pixels.
        detach_error: whether e is a constant for the gradient (default, our choice: better in our measurements).
            False: the gradient flows through e, as in third-party code.

    Shapes: logits (B, C, ...) with at least one spatial dimension, target (B, ...) integers -> scalar.

    A batch without valid pixels has loss 0 and a gradient of zeros. If e is 0 everywhere, M counts as 1.

    Raises:
        ValueError: for settings out of range, logits or target of another shape or type, and labels out of range.

    >>> target = torch.tensor([[[0, 0, 1, 1]] * 4])  # a vertical edge
    >>> logits = 2.0 * torch.stack([1 - 2 * target, 2 * target - 1], 1)
    >>> loss = StructuralSimilarityLoss(num_classes=2)
    >>> round(loss(logits, target).item(), 4), round(loss(-logits, target).item(), 4)
    (0.0639, 2.4471)
    """

    closed_form = True  # whether a detached error uses `ClosedFormSimilarity`; tests compare both

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = None,
        ce_weight: float = 0.5,
        threshold: float = 0.1,
        relative_threshold: bool = True,
        window_size: int = 3,
        window_std: float = 1.5,
        activation: Activation = "sigmoid",
        detach_error: bool = True,
    ) -> None:
        super().__init__()
        check_classes(num_classes, ignore_index)
        check_integer("window_size", window_size, 3)
        check_above_zero(window_std=window_std)
        if window_size % 2 == 0:
            raise ValueError(f"window_size must be odd, got {window_size}.")
        if not 0 <= ce_weight <= 1:
            raise ValueError(f"ce_weight must be from 0 to 1, got {ce_weight}.")
        if not 0 <= threshold < (1 if relative_threshold else float("inf")):
            limit = " and below 1, a fraction of the largest error" if relative_threshold else ""
            raise ValueError(f"threshold must be at least 0{limit}, got {threshold}.")
        if activation not in ("sigmoid", "softmax"):
            raise ValueError(f"activation must be 'sigmoid' or 'softmax', got {activation!r}.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.ce_weight = ce_weight
        self.threshold = threshold
        self.relative_threshold = relative_threshold
        self.window_size = window_size
        self.window_std = window_std
        self.activation = activation
        self.detach_error = detach_error

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items() if name != "training")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of a batch; see the class for shapes and errors."""
        check_shapes(logits, target, self.num_classes)
        if logits.ndim < 3:
            raise ValueError(
                f"logits must have at least one spatial dimension, (B, C, ...), got shape {tuple(logits.shape)}: "
                "images without pixels have no structure."
            )
        labels, valid = split_ignored(target, self.num_classes, self.ignore_index)
        settings = SimilaritySettings(
            self.ce_weight,
            self.threshold,
            self.relative_threshold,
            gaussian_window(self.window_size, self.window_std),
            self.activation == "softmax",
        )
        with torch.autocast(logits.device.type, enabled=False):
            # compiled code merges the maps of the loss as autograd sees it
            if self.detach_error and self.closed_form and not torch.compiler.is_compiling():
                plain = partial(self.by_autograd, labels=labels, valid=valid, settings=settings)
                processes = number_of_processes(self)
                loss: Tensor = ClosedFormSimilarity.apply(logits, labels, valid, settings, processes, plain)
                return loss
            return self.by_autograd(logits, labels, valid, settings)

    def by_autograd(self, logits: Tensor, labels: Tensor, valid: Tensor | None, settings: SimilaritySettings) -> Tensor:
        """Loss, differentiated by autograd; the memory is that of about 30 maps (B, C, ...)."""
        logits = at_least_float32(logits)
        truth = F.one_hot(labels, self.num_classes).movedim(-1, 1).to(logits.dtype)
        weight = torch.ones_like(truth[:, :1]) if valid is None else valid.unsqueeze(1).to(logits.dtype)
        probability = settings.activate(logits)
        if settings.softmax:
            cross_entropy = -truth * logits.log_softmax(1) * weight
        else:
            cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * weight
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_error):
            mask = None if valid is None else weight
            shares = window_shares(settings.window, mask, logits.ndim - 2)
            error = weight * structural_error(truth, probability, shares)
        processes = number_of_processes(self)
        largest = error.detach().amax() if error.numel() else error.new_zeros(())
        if processes > 1:
            distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        selected = error > settings.limit(largest)
        elements = weight.sum() * (1 if settings.softmax else self.num_classes)
        counts = torch.stack([elements.long(), selected.sum()])
        if processes > 1:
            distributed.all_reduce(counts)
        by_element, by_chosen = processes / counts.clamp_min(1).to(logits.dtype)
        hard = by_chosen * (error * selected * cross_entropy).sum()
        mixed: Tensor = self.ce_weight * by_element * cross_entropy.sum() + (1 - self.ce_weight) * hard
        return mixed
