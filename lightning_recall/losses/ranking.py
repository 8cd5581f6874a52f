"""Smooth ranks of a batch, block by block, with gradients in closed form: the room that all rank losses share.

The rank of a positive x for a query q is one plus the number of items more similar to q than x is. Its smooth form
replaces each comparison by a sigmoid of width `rank_temperature` (tau_2 in the paper):

    rank(q, x) = 1 + sum over z not in {q, x} of sigmoid((s_qz - s_qx) / tau_2)

A loss over these ranks needs N x P x N comparisons. They are made for a few queries at a time, and since
sigmoid' = sigmoid (1 - sigmoid), the same comparisons give the gradient of those queries at once: nothing is kept for
the backward pass but the gradient of the embeddings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]
"""Ranks (Q, P) and which of them count (Q, P) bool -> one value a query (Q,), to be minimised."""

BLOCK_ELEMENTS = 2**22  # comparisons held at a time: 16 MiB in fp32; smaller pays for more calls, larger for less cache


class Positives(NamedTuple):
    """Who should find whom: queries (Q,), their positives (Q, P), padded, and which are not padding (Q, P) bool."""

    queries: Tensor
    items: Tensor
    valid: Tensor


def find_positives(labels: Tensor) -> Positives:
    """Queries of a batch, those with few positives first, and the rows of the same label as each, itself left out.

    Args:
        labels: (N,) integers, any order, classes of any size.

    Returns:
        The queries that have a positive, sorted by the number of positives, so that a block pads little.
    """
    order = torch.argsort(labels, stable=True)  # rows of one class side by side
    _, inverse, counts = torch.unique_consecutive(labels[order], return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    size, start = counts[inverse], starts[inverse]  # (N,) of each sorted row's class
    by_size = torch.argsort(size, stable=True)
    by_size = by_size[size[by_size] > 1]
    size, start = size[by_size], start[by_size]

    width = int(counts.max()) - 1 if len(counts) else 0
    slot = torch.arange(width, device=labels.device)  # (P,)
    own = by_size - start  # the query's place in its class, stepped over
    place = start[:, None] + slot + (slot >= own[:, None])
    valid = slot < size[:, None] - 1
    items = order[place.clamp(max=max(len(labels) - 1, 0))]
    return Positives(order[by_size], items, valid)


def smooth_rank_loss(
    embeddings: Tensor,
    labels: Tensor,
    objective: Objective,
    rank_temperature: float,
    count_query: bool = False,
) -> Tensor:
    """Mean of `objective` over the queries of a batch, differentiable with respect to the embeddings.

    Args:
        embeddings: (N, D) floating point, unit length if similarities are to be cosines. Half-precision embeddings,
            and autocast, are computed in fp32; fp64 stays fp64.
        labels: (N,) integers.
        objective: gives each query's value from its positives' ranks; differentiated by autograd.
        rank_temperature: width of the comparison, above 0, in units of similarity.
        count_query: whether the query stands in its own ranking, as in the published code.

    Returns:
        A scalar. Queries without a positive do not count.

    Raises:
        ValueError: where shapes, dtypes or devices do not fit, embeddings are not finite, or no query has a positive.
    """
    check_batch(embeddings, labels)
    positives = find_positives(labels)
    if len(positives.queries) == 0:
        raise ValueError(
            f"No two of the {len(labels)} labels are equal, so no query has a positive to rank. "
            "Draw batches with at least 2 samples per class (ClassBalancedBatchSampler does)."
        )
    exact = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    loss: Tensor = _SmoothRankLoss.apply(exact, positives, objective, rank_temperature, count_query)
    return loss


def check_batch(embeddings: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless embeddings (N, D) and integer labels (N,) form a batch that can be ranked."""
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings must be floating point of shape (N, D), got {embeddings.dtype} {tuple(embeddings.shape)}."
        )
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels must hold one label per embedding, shape ({len(embeddings)},), got shape {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, got {labels.dtype}.")
    if labels.device != embeddings.device:
        raise ValueError(f"labels are on {labels.device}, embeddings on {embeddings.device}: move one of them.")
    if not torch.isfinite(embeddings).all():
        raise ValueError("embeddings hold NaN or infinity: lower the learning rate or clip gradients.")


class _SmoothRankLoss(torch.autograd.Function):
    """Computes the loss and, while the comparisons are at hand, its gradient; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, positives: Positives, objective: Objective, temperature: float, count_query: bool
    ) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            gradient = torch.zeros_like(embeddings) if ctx.needs_input_grad[0] else None
            total = embeddings.new_zeros(())
            for block in blocks(positives, len(embeddings)):
                total += add_block(embeddings, block, objective, temperature, count_query, gradient)
            count = len(positives.queries)
            if gradient is not None:
                ctx.save_for_backward(gradient.div_(count))
            return total / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None, None, None


def blocks(positives: Positives, num_items: int) -> list[Positives]:
    """Cuts the queries so that each block makes about BLOCK_ELEMENTS comparisons; padding is trimmed per block."""
    widths = positives.valid.sum(1).tolist()  # ascending
    cut, first = [], 0
    while first < len(widths):
        last = first + 1
        while last < len(widths) and (last + 1 - first) * (widths[last] + 1) * num_items <= BLOCK_ELEMENTS:
            last += 1
        width = widths[last - 1]
        cut.append(Positives(*(t[first:last, :width] if t.ndim == 2 else t[first:last] for t in positives)))
        first = last
    return cut


def add_block(
    embeddings: Tensor,
    block: Positives,
    objective: Objective,
    temperature: float,
    count_query: bool,
    gradient: Tensor | None,
) -> Tensor:
    """Sum of the objective over a block's queries; adds its gradient into `gradient` (N, D) if given."""
    queries, items, valid = block
    rows = embeddings[queries]  # (q, D)
    similarities = rows @ embeddings.T  # (q, N)
    at_positives = similarities.gather(1, items)  # (q, P)
    if not count_query:
        similarities.scatter_(1, queries[:, None], -torch.inf)  # sigmoid 0: never more similar than anything

    above = similarities[:, None, :] - at_positives[:, :, None]  # (q, P, N): by how much z beats x
    above.div_(temperature).sigmoid_()
    ranks = above.sum(2).add_(0.5)  # 1 + the sum; x itself stands in it with sigmoid(0) = 0.5
    ranks.requires_grad_(gradient is not None)
    with torch.set_grad_enabled(gradient is not None):
        value = objective(ranks, valid).sum()
    if gradient is not None:
        (by_rank,) = torch.autograd.grad(value, ranks)  # (q, P)
        by_rank = (by_rank * valid).div_(temperature)
        slope = torch.addcmul(above, above, above, value=-1, out=above)  # sigmoid' = g - g^2; its tau is in by_rank
        weights = torch.bmm(by_rank[:, None, :], slope)[:, 0]  # (q, N): dL/ds_qz
        weights.scatter_add_(1, items, -by_rank * slope.sum(2))  # raising s_qx lowers x's own rank
        gradient.addmm_(weights.T, rows)
        gradient.index_add_(0, queries, weights @ embeddings)
    return value.detach()
