"""UniLoss for Recall@k: "UniLoss: Unified Surrogate Loss by Adaptive Interpolation", ECCV 2020."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.checks import check_above_zero, check_integer
from lightning_recall.losses.anchors import (
    AnchorSamples,
    corrected_comparisons,
    flipped_comparisons,
    recalls_at_anchors,
    sums_over_negatives,
)
from lightning_recall.losses.base import check_ks
from lightning_recall.losses.pairwise import PairwiseLoss
from lightning_recall.losses.part_losses import MIN_EXPONENT, ClosedForm, evaluate_closed_form
from lightning_recall.losses.positives import QueryPositives
from lightning_recall.virtual_pairs import VirtualPairs, append_virtual_labels

PART_ELEMENTS = 2**21  # number of comparisons per part (8 MiB in fp32): smaller parts spend their time on small tensors
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
        _, classes, counts = torch.unique(all_labels, return_inverse=True, return_counts=True)
        max_positives = max(int(counts.max()) - 1, 1) if len(labels) else 1
        samples = AnchorSamples(*(part.to(embeddings) for part in self.draw(max_positives, len(all_labels))))
        random_sums = sums_over_negatives(samples.random, classes, len(counts))
        ks = torch.tensor(self.ks, device=embeddings.device)
        anchors = Anchors(samples, random_sums, classes, ks, self.tau)
        part_loss = partial(evaluate_closed_form, partial(one_minus_recall, anchors))
        loss = self.mean_over_queries(part_loss, embeddings, labels, queries, pairs)
        if self.training:
            self.num_batches += 1
        return loss


class Anchors(NamedTuple):
    """What defines the anchors of a batch and the recall at each.

    Attributes:
        samples: the random numbers.
        random_sums: (num_classes, B, P) sums of the random anchors over the negatives of each class.
        classes: (N,) class of each item.
        ks: (K,) cut-offs.
        tau: steepness of the comparison.
    """

    samples: AnchorSamples
    random_sums: Tensor
    classes: Tensor
    ks: Tensor
    tau: float


def one_minus_recall(
    anchors: Anchors, similarities: Tensor, positive_similarities: Tensor, part: QueryPositives, with_gradient: bool
) -> ClosedForm:
    """One minus the interpolated recall (q,) and its gradient, in parts; see `PairwiseLoss.closed_form`."""
    elements = PART_ELEMENTS if similarities.device.type == "cpu" else GPU_PART_ELEMENTS
    size = max(1, elements // (part.positives.shape[1] * similarities.shape[1]))
    values, gradient = torch.empty_like(positive_similarities[:, 0]), torch.zeros_like(positive_similarities)
    for start in range(0, len(similarities), size):
        rows = slice(start, start + size)
        valid = part.valid[rows]
        width = int(valid.sum(1).max())
        columns = rows, slice(0, width)
        narrow = QueryPositives(part.queries[rows], part.positives[columns], part.valid[columns])
        inputs = similarities[rows], positive_similarities[columns], narrow
        values[rows], gradient[columns] = interpolated_miss(anchors, *inputs, with_gradient)
    return ClosedForm(values, gradient)


def interpolated_miss(
    anchors: Anchors, similarities: Tensor, positive_similarities: Tensor, part: QueryPositives, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """One minus the interpolated recall (q,) of some queries, and its gradient with respect to the positives (q, P).

    With gradient, overwrites `similarities` (q, N) with the gradient with respect to the negatives. Comparisons are
    held as t = sigmoid(tau (s_qn - s_qp)) = (1 - u) / 2, which is 0 for everything that is no comparison. Autograd only
    differentiates with respect to the few sums that make up the distances (see `squared_distances_to_anchors`).
    """
    num_queries, num_items = similarities.shape
    width = part.valid.shape[1]
    samples = anchors.samples
    thresholds = positive_similarities.masked_fill(~part.valid, torch.inf)
    t = similarities[:, None, :] - thresholds[:, :, None]  # (q, P, N)
    wrong = torch.ge(t, 0, out=torch.empty_like(t))
    t = (
        F.threshold(t.mul_(anchors.tau), MIN_EXPONENT, -torch.inf, inplace=True).sigmoid_().flatten(1)
    )  # (q, C), C = P N
    counts = wrong.sum(2).long()  # (q, P) negatives ranked higher
    wrong = wrong.flatten(1)
    flipped = flipped_comparisons(part, num_items, samples.flip_uniforms)  # (q, A) indices into C
    corrected, has_wrong = corrected_comparisons(wrong, samples.correct_uniforms, flipped)
    random = samples.random[:, :width].flatten(1)  # (B, C)

    num_positives = part.valid.sum(1)
    num_negatives = num_items - 1 - num_positives
    random_sums = anchors.random_sums[anchors.classes[part.queries], :, :width]  # (q, B, P)
    random_counts = (num_negatives[:, None, None] - random_sums).long() // 2
    positives = flipped // num_items, corrected // num_items  # (q, A) each
    recalls = recalls_at_anchors(counts, *positives, has_wrong, part.valid, random_counts, anchors.ks).to(t.dtype)
    buffer = t - wrong  # half the difference to the signs of u
    squares = [torch.linalg.vector_norm(x, dim=1).square() for x in (t, buffer)]
    terms = [*squares, t.sum(1), t.gather(1, flipped), t.gather(1, corrected), t @ random.T]
    terms = [term.requires_grad_(with_gradient) for term in terms]
    with torch.set_grad_enabled(with_gradient):
        random_sum = (random_sums * part.valid[:, None]).sum(2)
        distances = squared_distances_to_anchors(terms, has_wrong, num_positives * num_negatives, random_sum)
        values = 1 - inverse_distance_mean(distances, recalls)
    if not with_gradient:
        return values, positive_similarities
    derivatives = torch.autograd.grad(values, terms, torch.full_like(values, anchors.tau))
    grad = gradient_of_comparisons(derivatives, t, wrong, (flipped, corrected), random, buffer)
    grad = grad.view(num_queries, width, num_items)
    torch.sum(grad, 1, out=similarities)
    return values.detach(), -grad.sum(2)


def gradient_of_comparisons(
    derivatives: tuple[Tensor, ...],
    t: Tensor,
    wrong: Tensor,
    indices: tuple[Tensor, Tensor],
    random: Tensor,
    out: Tensor,
) -> Tensor:
    """Gradient (q, C) with respect to the arguments of the sigmoids t (q, C), written to `out`.

    Args:
        derivatives: of the values, with respect to the terms of `squared_distances_to_anchors`.
        t: (q, C) comparisons.
        wrong: (q, C), 1 for comparisons with the wrong sign, 0 for others.
        indices: (q, A) of the flipped and of the corrected comparisons.
        random: (B, C) random anchors.
        out: (q, C).
    """
    grad_square, grad_mismatch, grad_sum, grad_flipped, grad_corrected, grad_random = derivatives
    grad = torch.mm(grad_random, random, out=out).add_(grad_sum[:, None])
    grad.addcmul_(t, 2 * (grad_square + grad_mismatch)[:, None]).addcmul_(wrong, -2 * grad_mismatch[:, None])
    grad.scatter_add_(1, indices[0], grad_flipped).scatter_add_(1, indices[1], grad_corrected)
    grad.mul_(t)
    return grad.addcmul_(grad, t, value=-1)  # sigmoid' = t (1 - t)


def squared_distances_to_anchors(
    terms: list[Tensor], has_wrong: Tensor, num_compared: Tensor, random_sum: Tensor
) -> Tensor:
    """Squared distances (q, M) from u to each anchor.

    With C the number of comparisons and j the comparison whose sign is flipped or corrected, and t = (1 - u) / 2:

        perfect                       sum (1 - u)^2
        perfect, sign j flipped       sum (1 - u)^2 + 4 u_j
        signs of u, sign j corrected  sum (1 - |u|)^2 + 4 |u_j|
        random signs b                sum u^2 + C - 2 sum u b

    Args:
        terms: sum of t^2 (q,), sum of (t - 1 if the sign is wrong, else t)^2 (q,), sum of t (q,), t at the flipped and
            at the corrected comparisons (q, A), dot products (q, B) of t with the random anchors.
        has_wrong: (q, 1) bool, whether the query has a wrong comparison.
        num_compared: (q,) number of comparisons C.
        random_sum: (q, B) sum of b over the comparisons.
    """
    square, square_to_signs, total, at_flipped, at_corrected, dot_random = terms
    to_perfect, to_signs = 4 * square[:, None], 4 * square_to_signs[:, None]
    to_flipped = to_perfect + 4 - 8 * at_flipped
    of_corrected = 4 - 8 * at_corrected
    to_corrected = torch.where(has_wrong, to_signs - of_corrected, to_perfect + of_corrected)
    squared_norm = num_compared[:, None] - 4 * total[:, None] + to_perfect
    to_random = squared_norm + num_compared[:, None] - 2 * (random_sum - 2 * dot_random)
    return torch.cat([to_perfect, to_flipped, to_corrected, to_random], 1)
