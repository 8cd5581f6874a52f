"""Values and gradients of a loss for a part of the queries, in closed form or by autograd; used by `PairwiseLoss`."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.losses.base import check_per_query
from lightning_recall.losses.positives import QueryPositives

PerQueryLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Similarities (q, N), and masks of positives and negatives (q, N) -> one value per query (q,)."""

MIN_EXPONENT = -50.0  # exponentials of smaller numbers are set to 0 (from at most 2e-22): denormals are slow on CPUs


class ClosedForm(NamedTuple):
    """Values and derivatives of a loss in closed form, for q queries.

    Attributes:
        values: (q,) one value per query.
        positive_gradient: (q, P) derivatives with respect to the similarities of the positives; 0 for padding.
        has_negative_gradient: (q,) bool, whether a negative of the query has a derivative other than 0; None: all.
    """

    values: Tensor
    positive_gradient: Tensor
    has_negative_gradient: Tensor | None = None


ClosedFormLoss = Callable[[Tensor, Tensor, QueryPositives, bool], ClosedForm]
"""See `PairwiseLoss.closed_form`."""


class PartResult(NamedTuple):
    """Result for q queries: `ClosedForm`, and whether the nearest neighbour of each query is a positive (q,).

    `positive_gradient` is None if the gradient of the similarities already contains it.
    """

    values: Tensor
    is_hit: Tensor
    positive_gradient: Tensor | None
    has_negative_gradient: Tensor | None


PartLoss = Callable[[Tensor, QueryPositives, bool], PartResult]
"""Similarities (q, N), queries and positives, whether to overwrite the similarities with the gradient -> result."""


def pad_with_query(part: QueryPositives) -> QueryPositives:
    """Replaces padding by the index of the query, so that it never stands for another item."""
    return part._replace(positives=torch.where(part.valid, part.positives, part.queries[:, None]))


def exclude_class(values: Tensor, part: QueryPositives, fill: float) -> None:
    """Sets the entries of each query and its positives in `values` (q, N) to `fill`. Padding must be the query."""
    values.scatter_(1, part.positives, fill).scatter_(1, part.queries[:, None], fill)


def evaluate_closed_form(
    closed_form: ClosedFormLoss, similarities: Tensor, part: QueryPositives, with_gradient: bool
) -> PartResult:
    """Evaluates a loss in closed form; with gradient, the similarities become the derivatives of the negatives."""
    positive_similarities = similarities.gather(1, part.positives)
    exclude_class(similarities, part, -torch.inf)
    best = positive_similarities.masked_fill(~part.valid, -torch.inf).amax(1)
    is_hit = best > similarities.amax(1)
    result = closed_form(similarities, positive_similarities, part, with_gradient)
    return PartResult(result.values, is_hit, result.positive_gradient, result.has_negative_gradient)


def evaluate_by_autograd(
    per_query_loss: PerQueryLoss, similarities: Tensor, part: QueryPositives, with_gradient: bool
) -> PartResult:
    """Evaluates a loss. With gradient, differentiates it, and overwrites the similarities with their gradient."""
    negative = torch.ones_like(similarities, dtype=torch.bool)
    exclude_class(negative, part, False)
    positive = (~negative).scatter_(1, part.queries[:, None], False)
    best, best_negative = (similarities.masked_fill(~mask, -torch.inf).amax(1) for mask in (positive, negative))
    leaf = similarities.detach().requires_grad_(with_gradient)
    with torch.set_grad_enabled(with_gradient):
        values = check_per_query(per_query_loss(leaf, positive, negative), len(leaf), "per_query_loss")
        total = values.sum()
    if with_gradient:
        similarities.copy_(torch.autograd.grad(total, leaf)[0])
    return PartResult(values.detach(), best > best_negative, None, None)


def accumulate_pairs(gradient: Tensor, embeddings: Tensor, part: QueryPositives, pair_gradient: Tensor) -> None:
    """Backpropagates the gradient of the similarities between queries and positives, and adds it to `gradient`.

    Args:
        gradient: (N, D), with respect to the embeddings.
        embeddings: (N, D).
        part: q queries with P positives each.
        pair_gradient: (q, P), with respect to the similarities; 0 for padding.
    """
    positive_embeddings = embeddings[part.positives]  # (q, P, D)
    gradient.index_add_(0, part.queries, torch.bmm(pair_gradient[:, None], positive_embeddings).squeeze(1))
    to_positives = torch.mul(embeddings[part.queries][:, None], pair_gradient[:, :, None], out=positive_embeddings)
    gradient.index_add_(0, part.positives.flatten(), to_positives.flatten(0, 1))
