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
from lightning_recall.virtual_pairs import VirtualPairs, append_virtual_labels

PART_ELEMENTS = 2**20  # number of comparisons per part (4 MiB in fp32)
GPU_PART_ELEMENTS = 2**24  # comparisons per part on a GPU (64 MiB)
MIN_SQUARED_DISTANCE = 1e-12  # lower bound of squared distances: 1 / d diverges at an anchor


def interpolate(u: Tensor, anchors: Tensor, values: Tensor) -> Tensor:
    """Inverse-distance interpolation of a function that is known only at some anchors.

    L(u) = (sum over i of v_i / d_i) / (sum over i of 1 / d_i), with d_i the Euclidean distance between u and anchor i.

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
    """Interpolates Recall@k between anchors.

    Each positive p and negative n of a query are compared by c_pn = tau (s_qp - s_qn), which is mapped to
    u = 2 sigmoid(c) - 1. Recall@k depends only on the signs of u. An anchor is a sign matrix of pairwise comparisons,
    for which Recall@k is known exactly. The anchors are: the perfect matrix, the perfect matrix with one sign flipped,
    the signs of u with one wrong sign corrected, and random signs. At u the recall is interpolated:

        loss = 1 - mean over q of (sum over i of r_i / d_i) / (sum over i of 1 / d_i),  d_i = |u - anchor i|

    with r_i the recall at anchor i, averaged over `ks`. Only the gradient is useful. Distant anchors bias the value,
    so it is not an estimate of the recall.

    Source: Liu, Wang, Deng, ECCV 2020 (arXiv 2007.13870). This package adds: Recall@k as the metric, its computation
    from counts, the parameter tau, and interpolation per query. The gradient is exact; in the authors' code one term
    has the wrong sign. Draws new anchors for each batch, seeded by `seed` plus the number of training batches before
    it. This number is saved in the state_dict. All processes draw the same anchors. Computed in blocks with closed-form
    gradients, in fp32 or fp64.

    Args:
        ks: cut-offs, integers of at least 1.
        tau: steepness of the comparison, above 0; with the paper's value of 1, gradients are too small for cosine
            similarities.
        num_good: number of anchors with one flipped sign, and also of anchors with one corrected sign; at least 1.
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
        flip_uniforms, correct_uniforms = (
            torch.rand(shape, generator=generator) for shape in ((self.num_good, 2), (self.num_good,))
        )
        signs = torch.randint(0, 2, (self.num_bad, num_positives, num_items), generator=generator, dtype=torch.int8)
        return AnchorSamples(flip_uniforms, correct_uniforms, 2 * signs - 1)

    def compute(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """See `RetrievalLoss.forward`."""
        all_labels = append_virtual_labels(labels, pairs)
        counts = torch.unique(all_labels, return_counts=True)[1]
        max_positives = max(int(counts.max()) - 1, 1) if len(labels) else 1
        samples = AnchorSamples(*(part.to(embeddings) for part in self.draw(max_positives, len(all_labels))))
        ks = torch.tensor(self.ks, device=embeddings.device)
        per_query_loss = partial(self.per_query_loss, ks=ks, samples=samples)
        loss = self.mean_over_queries(per_query_loss, embeddings, labels, queries, pairs)
        if self.training:
            self.num_batches += 1
        return loss

    def per_query_loss(
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
        part_elements = PART_ELEMENTS if similarities.device.type == "cpu" else GPU_PART_ELEMENTS
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
    differentiates with respect to the few terms that make up the distances (see `squared_distances_to_anchors`).
    """
    width = items.shape[1]
    positive_similarities = similarities.gather(1, items)
    is_comparison = (valid[:, :, None] & negative[:, None, :]).flatten(1)  # (q, C), C = P N
    differences = (positive_similarities[:, :, None] - similarities[:, None, :]).flatten(1)
    u = torch.tanh(differences * (tau / 2)) * is_comparison
    wrong = (u <= 0) & is_comparison
    signs = is_comparison.to(u.dtype).masked_fill_(wrong, -1.0)  # signs of u; 0 for padded comparisons
    counts = wrong.view(len(u), width, -1).sum(2)  # (q, P) negatives ranked higher
    flipped = flipped_comparisons(valid, negative, samples.flip_uniforms)  # (q, A) indices into C
    corrected, has_wrong = corrected_comparisons(wrong, samples.correct_uniforms, flipped)
    random = samples.random[:, :width].flatten(1)  # (B, C)

    num_items = negative.shape[1]
    positives = flipped // num_items, corrected // num_items  # (q, A) each
    recalls = recalls_at_anchors(counts, *positives, has_wrong, valid, negative, ks, samples.random)
    terms = [
        # squared distance to the perfect anchor; padding contributes 0
        (is_comparison.to(u.dtype) - u).square().sum(1),
        (signs - u).square().sum(1),
        u.square().sum(1),
        u.gather(1, flipped),
        u.gather(1, corrected),
        u @ random.T,
    ]
    terms = [term.detach().requires_grad_(gradient is not None) for term in terms]
    with torch.set_grad_enabled(gradient is not None):
        value = inverse_distance_mean(squared_distances_to_anchors(terms, has_wrong, is_comparison.sum(1)), recalls)
    if gradient is None:
        return value
    derivatives = torch.autograd.grad(value, terms, torch.ones_like(value))
    grad_perfect, grad_signs, grad_norm, grad_flipped, grad_corrected, grad_random = derivatives
    grad_u = grad_random @ random
    grad_u -= 2 * grad_perfect[:, None] * (1 - u) + 2 * grad_signs[:, None] * (signs - u) - 2 * grad_norm[:, None] * u
    grad_u.scatter_add_(1, flipped, grad_flipped).scatter_add_(1, corrected, grad_corrected)
    grad_c = (grad_u * (1 - u * u) * is_comparison).view(len(u), width, -1).mul_(tau / 2)
    gradient.copy_(-grad_c.sum(1)).scatter_add_(1, items, grad_c.sum(2))
    return value.detach()


def squared_distances_to_anchors(terms: list[Tensor], has_wrong: Tensor, num_compared: Tensor) -> Tensor:
    """Squared distances (q, M) from u to each anchor.

    With C the number of comparisons and j the comparison whose sign is flipped or corrected:

        perfect                       sum (1 - u)^2
        perfect, sign j flipped       sum (1 - u)^2 + 4 u_j
        signs of u, sign j corrected  sum (1 - |u|)^2 + 4 |u_j|
        random signs b                sum u^2 + C - 2 sum u b

    Args:
        terms: squared distances (q,) to the perfect anchor and to the signs of u, squared norm (q,) of u, u at the
            flipped and at the corrected comparisons (q, A), dot products (q, B) with the random anchors.
        has_wrong: (q, 1) bool, whether the query has a wrong comparison.
        num_compared: (q,) number of comparisons C.
    """
    to_perfect, to_signs, squared_norm, at_flipped, at_corrected, dot_random = terms
    to_flipped = to_perfect[:, None] + 4 * at_flipped
    to_corrected = torch.where(has_wrong, to_signs[:, None] - 4 * at_corrected, to_perfect[:, None] + 4 * at_corrected)
    to_random = (squared_norm + num_compared)[:, None] - 2 * dot_random
    return torch.cat([to_perfect[:, None], to_flipped, to_corrected, to_random], 1)
