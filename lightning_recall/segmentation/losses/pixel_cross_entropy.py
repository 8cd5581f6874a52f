"""Cross-entropy of each pixel, its gradient in closed form, and whether the pixel is predicted right."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.tensors import at_least_float32

BLOCK_ELEMENTS = 2**21  # logits at a time, if an image has no more: they stay in the cache of a processor


class PixelCrossEntropy(NamedTuple):
    """Cross-entropy of each pixel of a batch, without a graph.

    losses: (B, ...) in at least float32.
    is_right: (B, ...) bool, where the probability of the label is above all others.
    residual: (B, C, ...) derivative of `losses`, softmax - one-hot.
    """

    losses: Tensor
    is_right: Tensor
    residual: Tensor

    def weighted(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Losses (B, ...) times weights (B, ...), which are constants, as a function of the logits (B, C, ...)."""
        weighted: Tensor = _Weighted.apply(logits, labels, weights, self.losses, self.residual)
        return weighted


@torch.no_grad()
def right_pixels(logits: Tensor, labels: Tensor) -> Tensor:
    """Where the probability of the label is above all others, (B, ...) bool; see `in_closed_form`."""
    probabilities, index = at_least_float32(logits).softmax(1), labels.unsqueeze(1)
    others = probabilities.scatter(1, index, -1.0).amax(1)
    return probabilities.gather(1, index).squeeze(1) > others


@torch.no_grad()
def in_closed_form(logits: Tensor, labels: Tensor) -> PixelCrossEntropy:
    """Cross-entropy of each pixel and its derivative, from one pass over blocks of images.

    Args:
        logits: (B, C, ...) floating point.
        labels: (B, ...) int64 from 0 to C - 1.

    >>> found = in_closed_form(torch.tensor([[3.0, 1.0], [3.0, 3.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
    >>> found.is_right, [round(value, 3) for value in found.losses.tolist()]
    (tensor([ True, False,  True]), [0.127, 0.693, 0.313])
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    residual = torch.empty_like(logits, dtype=dtype)
    losses = torch.empty_like(labels, dtype=dtype)
    is_right = torch.empty_like(labels, dtype=torch.bool)
    images = max(1, BLOCK_ELEMENTS // max(1, logits[:1].numel()))
    for start in range(0, len(logits), images):
        block = slice(start, start + images)
        part, index, out = at_least_float32(logits[block]), labels[block].unsqueeze(1), residual[block]
        out.copy_(part.softmax(1))
        probability = out.gather(1, index)  # (b, 1, ...)
        out.scatter_(1, index, probability - 1)  # at most 0, so that the maximum is that of the other classes
        others = out.amax(1, keepdim=True)
        is_right[block] = (probability > others).squeeze(1)
        # log(sum(exp(z))) = max(z) - log(max(p)), where max(p) is at least 1 / C
        distance = part.amax(1, keepdim=True) - part.gather(1, index)
        losses[block] = (distance - torch.maximum(probability, others).log_()).squeeze(1)
    return PixelCrossEntropy(losses, is_right, residual)


class _Weighted(torch.autograd.Function):
    """Losses times weights; backward multiplies the residual."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor, losses: Tensor, residual: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels, weights, residual)
        return losses * weights

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, weights, residual = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph: the residual as a function of the logits
            truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)
            residual = at_least_float32(logits).softmax(1) - truth
        gradient = residual * (outer * weights).unsqueeze(1)
        return gradient.to(logits.dtype), None, None, None, None
