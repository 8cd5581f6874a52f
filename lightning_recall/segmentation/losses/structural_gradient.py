"""Structural similarity loss and its gradient in closed form, image by image."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from lightning_recall.segmentation.losses.structural_error import structural_error, window_shares
from lightning_recall.tensors import at_least_float32

BLOCK_ELEMENTS = {"cpu": 2**17}  # elements of a map at a time: about ten maps of this size stay in the cache
DEFAULT_BLOCK_ELEMENTS = 2**24


@dataclass(frozen=True)
class SimilaritySettings:
    """Settings of `StructuralSimilarityLoss`."""

    ce_weight: float
    threshold: float
    relative_threshold: bool
    window: list[float]
    softmax: bool

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities (B, C, ...)."""
        return logits.softmax(1) if self.softmax else logits.sigmoid()

    def limit(self, largest: Tensor) -> Tensor:
        """The error above which an element counts, from the largest error."""
        return self.threshold * (largest if self.relative_threshold else torch.ones_like(largest))


class ClosedFormSimilarity(torch.autograd.Function):
    """The loss with e as a constant; `forward` also computes the gradient, one map (B, C, ...)."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        valid: Tensor | None,
        settings: SimilaritySettings,
        processes: int,
        by_autograd: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Loss, a scalar; see `loss_and_gradient`. `by_autograd` is the same loss of the logits, for backward."""
        loss, gradient = loss_and_gradient(logits, labels, valid, settings, processes)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(logits, gradient)
        ctx.by_autograd = by_autograd
        return loss

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient with respect to the logits, times that of the loss."""
        logits, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph: the gradient as a function of the logits
            with torch.autocast(logits.device.type, enabled=False):
                (gradient,) = torch.autograd.grad(ctx.by_autograd(logits), logits, create_graph=True)
        return (gradient * outer).to(logits.dtype), None, None, None, None, None


def loss_and_gradient(
    logits: Tensor, labels: Tensor, valid: Tensor | None, settings: SimilaritySettings, processes: int
) -> tuple[Tensor, Tensor]:
    """The loss, and its derivative with respect to the logits.

    With a = lambda / N + (1 - lambda) e f / M for each element, the loss is sum(a CE). The first pass over the images
    finds e, the second one replaces it by the gradient in place.

    Args:
        logits: (B, C, ...) floating point.
        labels: (B, ...) int64 from 0 to C - 1.
        valid: (B, ...) bool, or None: all pixels are valid.
        settings: settings of the loss.
        processes: number of processes that share the batch.

    Returns:
        loss, a scalar, and gradient (B, C, ...), in fp32 or fp64.
    """
    errors = find_errors(logits, labels, valid, settings)
    largest = errors.amax() if errors.numel() else errors.new_zeros(())
    if processes > 1:
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    limit = settings.limit(largest)
    chosen = torch.stack([(part > limit).sum() for part in errors] or [labels.new_zeros(())]).sum()
    pixels = labels.new_tensor(labels.numel()) if valid is None else valid.sum()
    counts = torch.stack([pixels * (1 if settings.softmax else logits.shape[1]), chosen])
    if processes > 1:
        distributed.all_reduce(counts)
    by_element, by_chosen = processes / counts.clamp_min(1).to(errors.dtype)
    scales = settings.ce_weight * by_element, (1 - settings.ce_weight) * by_chosen
    values = []
    for image, classes in blocks(logits, whole=settings.softmax):
        error = errors[image, classes]
        weight = scales[0] + scales[1] * torch.where(error > limit, error, 0)
        if valid is not None:
            weight.mul_(valid[image].unsqueeze(1))
        part = at_least_float32(logits[image, classes])
        move = softmax_step if settings.softmax else sigmoid_step
        values.append(move(part, labels[image], classes, weight, error))
    return torch.stack(values or [errors.new_zeros(())]).sum(), errors


def find_errors(logits: Tensor, labels: Tensor, valid: Tensor | None, settings: SimilaritySettings) -> Tensor:
    """The error of each element (B, C, ...), 0 where a pixel is not valid."""
    errors = torch.empty_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32))
    for image, classes in blocks(logits, whole=False):
        if classes.start == 0:
            mask = None if valid is None else valid[image].unsqueeze(1).to(errors.dtype)
            shares = window_shares(settings.window, mask, logits.ndim - 2)
            probability = settings.activate(at_least_float32(logits[image]))
        truth = one_hot(labels[image], classes, errors.dtype)
        error = structural_error(truth, probability[:, classes], shares)
        errors[image, classes] = error if mask is None else error.mul_(mask)
    return errors


def blocks(logits: Tensor, whole: bool) -> Iterator[tuple[slice, slice]]:
    """Images and classes that are processed at a time; all classes of an image at once if `whole`."""
    size, num_classes = logits[:1, :1].numel(), logits.shape[1]
    planes = max(1, BLOCK_ELEMENTS.get(logits.device.type, DEFAULT_BLOCK_ELEMENTS) // max(size, 1))
    step = num_classes if whole else min(planes, num_classes)
    images = max(1, planes // num_classes)
    for image in range(0, len(logits), images):
        for start in range(0, num_classes, step):
            yield slice(image, image + images), slice(start, min(start + step, num_classes))


def one_hot(labels: Tensor, classes: slice, dtype: torch.dtype) -> Tensor:
    """Truth (b, c, ...) of some classes as 0 and 1, from labels (b, ...)."""
    indices = torch.arange(classes.start, classes.stop, device=labels.device)
    return (labels.unsqueeze(1) == indices.view(-1, *[1] * (labels.ndim - 1))).to(dtype)


def sigmoid_step(logits: Tensor, labels: Tensor, classes: slice, weight: Tensor, out: Tensor) -> Tensor:
    """Sum of weight times binary cross-entropy; its gradient goes to `out`. All but labels are (b, c, ...)."""
    truth = one_hot(labels, classes, logits.dtype)
    torch.mul(logits.sigmoid().sub_(truth), weight, out=out)
    losses = F.logsigmoid(logits.mul(truth.mul_(2).sub_(1)))  # minus the cross-entropy
    return -losses.mul_(weight).sum()


def softmax_step(logits: Tensor, labels: Tensor, _: slice, weight: Tensor, out: Tensor) -> Tensor:
    """Sum of weight times cross-entropy; its gradient goes to `out`. All but labels are (b, C, ...)."""
    index = labels.unsqueeze(1)
    log_probability, weight = logits.log_softmax(1), weight.gather(1, index)  # (b, 1, ...)
    losses = log_probability.gather(1, index)
    out.copy_(log_probability.exp_().scatter_add_(1, index, -torch.ones_like(losses)).mul_(weight))
    return -losses.mul_(weight).sum()
