"""UniLoss for Recall@k: "UniLoss: Unified Surrogate Loss by Adaptive Interpolation", ECCV 2020."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_recall.losses.anchors import Draws, flipped, put_right, recalls_at_anchors
from lightning_recall.losses.base import RetrievalLoss, check_above_zero, check_ks
from lightning_recall.losses.gallery import VirtualPairs
from lightning_recall.losses.pairwise import pairwise_loss

PART_ELEMENTS = 2**20  # comparisons held at a time, 4 MiB in fp32
DEVICE_ELEMENTS = 2**24  # on a GPU, 64 MiB
SMALLEST = 1e-12  # squared distance: at an anchor the interpolation has no gradient


def interpolate(u: Tensor, anchors: Tensor, values: Tensor) -> Tensor:
    """Inverse-distance interpolation of a function known at some anchors only.

    L(u) = sum over i of v_i / d_i, over the sum over i of 1 / d_i, with d_i the Euclidean distance of u and anchor i.

    Args:
        u: (..., C) where.
        anchors: (..., M, C).
        values: (..., M) at the anchors.

    Returns:
        (...), differentiable by `u`.

    >>> interpolate(torch.tensor([0.0]), torch.tensor([[-1.0], [2.0]]), torch.tensor([3.0, 6.0]))
    tensor(4.)
    """
    squared = (u[..., None, :] - anchors).square().sum(-1)
    return weighted_mean(squared, values)


def weighted_mean(squared: Tensor, values: Tensor) -> Tensor:
    """Mean of values (..., M) weighted by the inverse of distances, of which the squares (..., M) are given."""
    weights = squared.clamp(min=SMALLEST).rsqrt()
    return (values * weights).sum(-1) / weights.sum(-1)


class UniLoss(RetrievalLoss):
    """Interpolates the exact Recall@k between configurations of comparisons for which it is known.

    A query's comparisons c_pn = tau (s_qp - s_qn) of its positives and negatives become u = 2 sigmoid(c) - 1. Recall@k
    is a function of their signs alone. It is evaluated at anchors, matrices of signs: the best one, the best with one
    sign flipped, the signs of u with one wrong sign put right, and random ones; at u it is interpolated:

        loss = 1 - mean over q of (sum over i of r_i / d_i) / (sum over i of 1 / d_i),  d_i = |u - anchor i|

    with r_i the recall at anchor i, averaged over `ks`. The value is no estimate of the recall, since the anchors' far
    from u count too; the gradient is what trains.

    Source: Liu, Wang, Deng, ECCV 2020 (arXiv 2007.13870); Recall@k, its form by counts, tau and the interpolation query
    by query are this package's. The gradient is the true one; that of the released code has the sign of one term
    wrong. The anchors are drawn anew for each batch, from a seed and the number of batches, which is part of the
    state: the same on every process. Block by block, in closed form, in fp32 at least.

    Args:
        ks: cut-offs, integers from 1.
        tau: steepness of the comparison, above 0; at 1, the paper's, cosines hardly train.
        num_good: anchors with one sign flipped, and as many with one put right, from 1.
        num_bad: random anchors, from 0.
        seed: of the anchors.

    Shapes: embeddings (N, D) of unit length, labels (N,) -> scalar.

    Attributes:
        diagnostics: of the last batch: the exact "recall@1" within it.

    Raises:
        ValueError: for settings out of range, and batches that `pairwise_loss` refuses.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> loss = UniLoss(ks=(1, 2))
    >>> bool(loss(embeddings, torch.tensor([0, 0, 1, 1])) < loss(embeddings, torch.tensor([0, 1, 0, 1])))
    True
    """

    shares_queries = True
    accepts_virtual = True
    batches: Tensor

    def __init__(
        self, ks: Sequence[int] = (1, 2, 4), tau: float = 20.0, num_good: int = 16, num_bad: int = 16, seed: int = 0
    ) -> None:
        super().__init__()
        self.ks = tuple(ks)
        self.tau = tau
        self.num_good = num_good
        self.num_bad = num_bad
        self.seed = seed
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.check_settings()

    def check_settings(self) -> None:
        """As `RetrievalLoss`."""
        check_ks(self.ks)
        check_above_zero(tau=self.tau)
        for name, number, least in (("num_good", self.num_good, 1), ("num_bad", self.num_bad, 0)):
            if type(number) is not int or number < least:
                raise ValueError(f"{name} must be an integer from {least}, got {number}.")

    def draw(self, num_positives: int, num_items: int) -> Draws:
        """The random numbers of the next batch, on the CPU."""
        generator = torch.Generator().manual_seed(self.seed + int(self.batches))
        good, near = (torch.rand(shape, generator=generator) for shape in ((self.num_good, 2), (self.num_good,)))
        signs = torch.randint(0, 2, (self.num_bad, num_positives, num_items), generator=generator, dtype=torch.int8)
        return Draws(good, near, 2 * signs - 1)

    def compute(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """As `RetrievalLoss`."""
        everything = labels if pairs is None else torch.cat([labels, labels[pairs[0]]])
        most = max(int(torch.unique(everything, return_counts=True)[1].max()) - 1, 1) if len(labels) else 1
        drawn = self.draw(most, len(everything))
        draws = Draws(*(part.to(embeddings) for part in drawn))
        ks = torch.tensor(self.ks, device=embeddings.device)

        def values(similarities: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
            missed: Tensor = _Interpolation.apply(similarities, positive, negative, ks, self.tau, draws)
            return missed

        result = pairwise_loss(embeddings, labels, values, queries, pairs)
        self.diagnostics = {"recall@1": result.hits}
        if self.training:
            self.batches += 1
        return result.loss


class _Interpolation(torch.autograd.Function):
    """One value for each row of similarities; its gradient is computed on the way."""

    @staticmethod
    def forward(
        ctx: Any, similarities: Tensor, positive: Tensor, negative: Tensor, ks: Tensor, tau: float, draws: Draws
    ) -> Tensor:
        counts = positive.sum(1)  # (q,)
        width = int(counts.max())
        row, column = positive.nonzero().unbind(1)
        items = column.new_zeros(len(counts), width)  # (q, P), ascending, padded
        items[row, torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]] = column
        valid = torch.arange(width, device=items.device) < counts[:, None]
        gradient = torch.empty_like(similarities) if ctx.needs_input_grad[0] else None
        values = []
        at_a_time = PART_ELEMENTS if similarities.device.type == "cpu" else DEVICE_ELEMENTS
        num_rows = max(1, at_a_time // (width * similarities.shape[1]))
        for start in range(0, len(similarities), num_rows):
            part = slice(start, start + num_rows)
            of_part = similarities[part], items[part], valid[part], negative[part]
            by_part = None if gradient is None else gradient[part]
            values.append(1 - interpolated_recall(*of_part, ks, tau, draws, by_part))
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return torch.cat(values)

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
    draws: Draws,
    gradient: Tensor | None,
) -> Tensor:
    """Interpolated recall (q,) of some queries; its gradient by the similarities (q, N) goes into `gradient` (q, N).

    Only the distances' few parts are differentiated by autograd: with b the anchor, the squared distance of the best is
    sum (1 - u)^2, with one sign flipped 4 u_j more; of the signs of u sum (1 - |u|)^2, with one put right 4 |u_j| more;
    of a random one sum u^2 + C - 2 sum u b.
    """
    width = items.shape[1]
    at_positives = similarities.gather(1, items)
    compared = (valid[:, :, None] & negative[:, None, :]).flatten(1)  # (q, C), C = P N
    u = torch.tanh((at_positives[:, :, None] - similarities[:, None, :]).flatten(1) * (tau / 2)) * compared
    wrong = (u <= 0) & compared
    signs = compared.to(u.dtype).masked_fill_(wrong, -1.0)  # of u; 0 where nothing is compared
    counts = wrong.view(len(u), width, -1).sum(2)  # (q, P) negatives ahead
    good = flipped(valid, negative, draws.good)  # (q, G) places in C
    near, some_wrong = put_right(wrong, draws.near, good)
    bad = draws.bad[:, :width].flatten(1)  # (B, C)

    recalls = recalls_at_anchors(
        counts, good // negative.shape[1], near // negative.shape[1], some_wrong, valid, negative, ks, draws
    )
    parts = [
        (compared.to(u.dtype) - u).square().sum(1),  # to the best; where nothing is compared, both are 0
        (signs - u).square().sum(1),
        u.square().sum(1),
        u.gather(1, good),
        u.gather(1, near),
        u @ bad.T,
    ]
    parts = [part.detach().requires_grad_(gradient is not None) for part in parts]
    best, current, square, at_good, at_near, along_bad = parts
    with torch.set_grad_enabled(gradient is not None):
        one_right = torch.where(some_wrong, current[:, None] - 4 * at_near, best[:, None] + 4 * at_near)
        of_bad = (square + compared.sum(1))[:, None] - 2 * along_bad
        value = weighted_mean(torch.cat([best[:, None], best[:, None] + 4 * at_good, one_right, of_bad], 1), recalls)
    if gradient is None:
        return value
    derivatives = torch.autograd.grad(value, parts, torch.ones_like(value))
    by_best, by_current, by_square, by_good, by_near, by_bad = derivatives
    by_u = by_bad @ bad
    by_u -= 2 * by_best[:, None] * (1 - u) + 2 * by_current[:, None] * (signs - u) - 2 * by_square[:, None] * u
    by_u.scatter_add_(1, good, by_good).scatter_add_(1, near, by_near)
    by_c = (by_u * (1 - u * u) * compared).view(len(u), width, -1).mul_(tau / 2)
    gradient.copy_(-by_c.sum(1)).scatter_add_(1, items, by_c.sum(2))
    return value.detach()
