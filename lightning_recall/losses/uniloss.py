"""UniLoss for Recall@k: "UniLoss: Unified Surrogate Loss by Adaptive Interpolation", ECCV 2020."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_recall.checks import check_above_zero, check_integer
from lightning_recall.losses.anchors import (
    AnchorSamples,
    corrected_comparisons,
    flipped_comparisons,
    recalls_at_anchors,
)
from lightning_recall.losses.base import check_ks
from lightning_recall.losses.pairwise import PairwiseLoss
from lightning_recall.tensors import arange_within_groups
from lightning_recall.virtual_pairs import VirtualPairs, labels_with_virtual

PART_ELEMENTS = 2**20  # number of comparisons per part (4 MiB in fp32)
DEVICE_ELEMENTS = 2**24  # on a GPU (64 MiB)
MIN_SQUARED_DISTANCE = 1e-12  # lower bound of squared distances: 1 / d diverges at an anchor


def interpolate(u: Tensor, anchors: Tensor, values: Tensor) -> Tensor:
    """Inverse-distance interpolation of a function that is known only at some anchors.

    L(u) = (sum over i of v_i / d_i) / (sum over i of 1 / d_i), with d_i the Euclidean distance of u and anchor i.

    Args:
        u: (..., C) point to interpolate at.
        anchors: (..., M, C).
        values: (..., M) function values at the anchors.

    Returns:
        (...), differentiable with respect to `u`.

    >>> interpolate(torch.tensor([0.0]), torch.tensor([[-1.0], [2.0]]), torch.tensor([3.0, 6.0]))
    tensor(4.)
    """
    squared_distances = (u[..., None, :] - anchors).square().sum(-1)
    return inverse_distance_mean(squared_distances, values)


def inverse_distance_mean(squared_distances: Tensor, values: Tensor) -> Tensor:
    """Inverse-distance weighted mean of values (..., M), given squared distances (..., M)."""
    weights = squared_distances.clamp(min=MIN_SQUARED_DISTANCE).rsqrt()
    return (values * weights).sum(-1) / weights.sum(-1)


class UniLoss(PairwiseLoss):
    """Interpolates Recall@k between anchors, sign matrices of pairwise comparisons at which it is exact.

    A query's comparisons c_pn = tau (s_qp - s_qn) of its positives and negatives become u = 2 sigmoid(c) - 1. Recall@k
    is a function of their signs alone. It is evaluated at anchors: the perfect matrix, the perfect matrix with one sign
    flipped, the signs of u with one wrong sign corrected, and random signs. At u the recall is interpolated:

        loss = 1 - mean over q of (sum over i of r_i / d_i) / (sum over i of 1 / d_i),  d_i = |u - anchor i|

    with r_i the recall at anchor i, averaged over `ks`. The value does not estimate the recall, since distant anchors
    contribute to it; only its gradient is useful.

    Source: Liu, Wang, Deng, ECCV 2020 (arXiv 2007.13870). The application to Recall@k, computing it from counts, tau
    and per-query interpolation are additions of this package. The gradient is exact; in the authors' code one term has
    the wrong sign. New anchors are drawn for each batch from `seed` plus the batch counter, which is saved in the
    state_dict; all processes draw the same. Computed in blocks with closed-form gradients, in fp32 or fp64.

    Args:
        ks: cut-offs, integers of at least 1.
        tau: steepness of the comparison, above 0; with the paper's value of 1, the gradient of cosines is too small to
            train.
        num_good: number of anchors with one flipped sign, and of anchors with one corrected sign, at least 1.
        num_bad: number of random anchors, at least 0.
        seed: seed for drawing the anchors.

    Shapes: embeddings (N, D) of unit length, labels (N,) -> scalar.

    Attributes:
        diagnostics: exact "recall@1" within the last batch.

    Raises:
        ValueError: for settings out of range, and batches that `pairwise_loss` rejects.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> loss = UniLoss(ks=(1, 2))
    >>> bool(loss(embeddings, torch.tensor([0, 0, 1, 1])) < loss(embeddings, torch.tensor([0, 1, 0, 1])))
    True
    """

    num_batches: Tensor

    def __init__(
        self, ks: Sequence[int] = (1, 2, 4), tau: float = 20.0, num_good: int = 16, num_bad: int = 16, seed: int = 0
    ) -> None:
        super().__init__()
        self.ks = tuple(ks)
        self.tau = tau
        self.num_good = num_good
        self.num_bad = num_bad
        self.seed = seed
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))
        self.check_settings()

    def check_settings(self) -> None:
        """See `RetrievalLoss.check_settings`."""
        check_ks(self.ks)
        check_above_zero(tau=self.tau)
        check_integer("num_good", self.num_good, 1)
        check_integer("num_bad", self.num_bad, 0)

    def draw(self, num_positives: int, num_items: int) -> AnchorSamples:
        """Draws the random numbers of the next batch, on the CPU."""
        generator = torch.Generator().manual_seed(self.seed + int(self.num_batches))
        good, near = (torch.rand(shape, generator=generator) for shape in ((self.num_good, 2), (self.num_good,)))
        signs = torch.randint(0, 2, (self.num_bad, num_positives, num_items), generator=generator, dtype=torch.int8)
        return AnchorSamples(good, near, 2 * signs - 1)

    def compute(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """See `RetrievalLoss.forward`."""
        all_labels = labels_with_virtual(labels, pairs)
        counts = torch.unique(all_labels, return_counts=True)[1]
        max_positives = max(int(counts.max()) - 1, 1) if len(labels) else 1
        samples = AnchorSamples(*(part.to(embeddings) for part in self.draw(max_positives, len(all_labels))))
        ks = torch.tensor(self.ks, device=embeddings.device)
        query_values = partial(self.query_values, ks=ks, samples=samples)
        loss = self.mean_over_queries(query_values, embeddings, labels, queries, pairs)
        if self.training:
            self.num_batches += 1
        return loss

    def query_values(
        self, similarities: Tensor, positive: Tensor, negative: Tensor, ks: Tensor, samples: AnchorSamples
    ) -> Tensor:
        """One minus the interpolated recall (q,)."""
        values: Tensor = _OneMinusRecall.apply(similarities, positive, negative, ks, self.tau, samples)
        return values


class _OneMinusRecall(torch.autograd.Function):
    """One value for each row of similarities; the gradient is computed in forward."""

    @staticmethod
    def forward(
        ctx: Any,
        similarities: Tensor,
        positive: Tensor,
        negative: Tensor,
        ks: Tensor,
        tau: float,
        samples: AnchorSamples,
    ) -> Tensor:
        counts = positive.sum(1)  # (q,)
        width = int(counts.max())
        row, column = positive.nonzero().unbind(1)
        items = column.new_zeros(len(counts), width)  # (q, P), ascending, padded
        items[row, arange_within_groups(counts)] = column
        valid = torch.arange(width, device=items.device) < counts[:, None]
        gradient = torch.empty_like(similarities) if ctx.needs_input_grad[0] else None
        recalls = []
        part_elements = PART_ELEMENTS if similarities.device.type == "cpu" else DEVICE_ELEMENTS
        part_queries = max(1, part_elements // (width * similarities.shape[1]))
        for start in range(0, len(similarities), part_queries):
            part = slice(start, start + part_queries)
            part_inputs = similarities[part], items[part], valid[part], negative[part]
            part_gradient = None if gradient is None else gradient[part]
            recalls.append(interpolated_recall(*part_inputs, ks, tau, samples, part_gradient))
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return 1 - torch.cat(recalls)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * -grad_outputs[0][:, None], None, None, None, None, None


def interpolated_recall(
    similarities: Tensor,
    items: Tensor,
    valid: Tensor,
    negative: Tensor,
    ks: Tensor,
    tau: float,
    samples: AnchorSamples,
    gradient: Tensor | None,
) -> Tensor:
    """Interpolated recall (q,) of some queries.

    The gradient with respect to the similarities (q, N) is written to `gradient` (q, N), if given. Autograd only
    differentiates with respect to the few terms that make up the distances. Squared distances of u:

        perfect anchor        sum (1 - u)^2
        one sign flipped      + 4 u_j
        signs of u            sum (1 - |u|)^2
        one sign corrected    + 4 |u_j|
        random anchor b       sum u^2 + C - 2 sum u b
    """
    width = items.shape[1]
    at_positives = similarities.gather(1, items)
    compared = (valid[:, :, None] & negative[:, None, :]).flatten(1)  # (q, C), C = P N
    u = torch.tanh((at_positives[:, :, None] - similarities[:, None, :]).flatten(1) * (tau / 2)) * compared
    wrong = (u <= 0) & compared
    signs = compared.to(u.dtype).masked_fill_(wrong, -1.0)  # signs of u; 0 for padded comparisons
    counts = wrong.view(len(u), width, -1).sum(2)  # (q, P) negatives ranked higher
    good = flipped_comparisons(valid, negative, samples.good)  # (q, G) indices into C
    near, has_wrong = corrected_comparisons(wrong, samples.near, good)
    bad = samples.bad[:, :width].flatten(1)  # (B, C)

    num_items = negative.shape[1]
    recalls = recalls_at_anchors(counts, good // num_items, near // num_items, has_wrong, valid, negative, ks, samples)
    terms = [
        (compared.to(u.dtype) - u).square().sum(1),  # squared distance to the perfect anchor; padding contributes 0
        (signs - u).square().sum(1),
        u.square().sum(1),
        u.gather(1, good),
        u.gather(1, near),
        u @ bad.T,
    ]
    terms = [term.detach().requires_grad_(gradient is not None) for term in terms]
    best, current, square, at_good, at_near, dot_random = terms
    with torch.set_grad_enabled(gradient is not None):
        corrected = torch.where(has_wrong, current[:, None] - 4 * at_near, best[:, None] + 4 * at_near)
        random = (square + compared.sum(1))[:, None] - 2 * dot_random
        squared_distances = torch.cat([best[:, None], best[:, None] + 4 * at_good, corrected, random], 1)
        value = inverse_distance_mean(squared_distances, recalls)
    if gradient is None:
        return value
    derivatives = torch.autograd.grad(value, terms, torch.ones_like(value))
    grad_best, grad_current, grad_square, grad_good, grad_near, grad_random = derivatives
    grad_u = grad_random @ bad
    grad_u -= 2 * grad_best[:, None] * (1 - u) + 2 * grad_current[:, None] * (signs - u) - 2 * grad_square[:, None] * u
    grad_u.scatter_add_(1, good, grad_good).scatter_add_(1, near, grad_near)
    grad_c = (grad_u * (1 - u * u) * compared).view(len(u), width, -1).mul_(tau / 2)
    gradient.copy_(-grad_c.sum(1)).scatter_add_(1, items, grad_c.sum(2))
    return value.detach()
