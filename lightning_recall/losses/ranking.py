"""Smooth ranks of a batch in blocks, with closed-form gradients; used by all ranking losses.

The rank of a positive x for a query q is one plus the number of items more similar to q than x is. Its smooth form
replaces each comparison by a sigmoid with temperature `rank_temperature` (tau_2 in Patel et al., CVPR 2022):

    rank(q, x) = 1 + sum over z not in {q, x} of sigmoid((s_qz - s_qx) / tau_2)

A loss over these ranks needs N x P x N comparisons. They are computed for a few queries at a time. Because sigmoid' =
sigmoid (1 - sigmoid), their gradient is computed in the same pass. Only the gradient of the embeddings is saved for
backward.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.losses.base import check_batch, check_finite_if_compiling, check_per_query, select_queries
from lightning_recall.losses.closed_form import forbid_double_backward
from lightning_recall.losses.heaviside import Sigmoid, SmoothHeaviside
from lightning_recall.losses.parts import Part, block_limits, split_into_blocks
from lightning_recall.losses.positives import QueryPositives, find_positives
from lightning_recall.losses.query_blocks import MixedQueryBlocks, QueryBlocks, make_query_blocks
from lightning_recall.virtual_pairs import VirtualPairs, append_virtual_labels

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Ranks (Q, P), valid mask (Q, P) bool, and similarities of the positives (Q, P) in units of the temperature -> one
value per query (Q,), to be minimised."""

NEGLIGIBLE = 1e-16  # smaller derivatives of the objective are set to 0, since denormals are slow on CPUs
ACTIVE_THRESHOLD = 1e-6  # a positive is active if |d value / d rank| is larger


class RankLossResult(NamedTuple):
    """Ranking loss and its diagnostics.

    Attributes:
        loss: scalar, the mean over the queries.
        first_match: (Q,) rank (from 1) of each query's best positive among the negatives; in a tie, the positive is
            ranked below the negative. Recall@k is the fraction of queries with first_match <= k.
        active: scalar, fraction of query-positive pairs with |d value / d rank| > 1e-6.
    """

    loss: Tensor
    first_match: Tensor
    active: Tensor

    def diagnostics(self, ks: Sequence[int]) -> dict[str, Tensor]:
        """The exact hit rate within the batch, "recall@k", and "active_positives" if the loss requires a gradient."""
        recalls = {f"recall@{k}": (self.first_match <= k).float().mean() for k in ks}
        return {**recalls, "active_positives": self.active} if self.loss.requires_grad else recalls


class RankingConfig(NamedTuple):
    """How the similarities are turned into the loss."""

    objective: Objective
    temperature: float
    heaviside: SmoothHeaviside
    count_query: bool


def smooth_rank_loss(
    embeddings: Tensor,
    labels: Tensor,
    objective: Objective,
    rank_temperature: float,
    count_query: bool = False,
    queries: slice | Tensor | None = None,
    pairs: VirtualPairs | None = None,
    heaviside: SmoothHeaviside | None = None,
) -> RankLossResult:
    """Mean of `objective` over the queries of a batch, differentiable with respect to the embeddings.

    Args:
        embeddings: (N, D) floating point, unit length if similarities are to be cosines. The loss is computed
            in fp32, also for half-precision embeddings and under autocast; fp64 stays fp64. Second derivatives are not
            supported.
        labels: (N,) integers.
        objective: maps ranks and similarities of the positives to one value per query. Autograd differentiates it with
            respect to these inputs only: parameters in it get no gradient.
        rank_temperature: sigmoid temperature, above 0, in units of similarity.
        count_query: whether the query is included in its own ranking, as in the authors' code.
        queries: slice or indices of the queries, without duplicates; None: all. The gallery is always the whole batch.
            If the queries are split into disjoint parts, average the losses (and gradients) of the parts, weighted by
            number of valid queries, to get the full loss.
        pairs: M virtual items (SiMix), as `SimilarityMixup.draw` returns them: indices of two same-class items and the
            mixing weight of the first. They are queries and gallery items with indices N, N + 1, .... Equivalent to
            appending their embeddings, but faster.
        heaviside: smooth form of the comparison; None: the sigmoid.

    Returns:
        The loss, the exact rank of each query's first match, and the fraction of positives with non-zero gradient.
        Queries without a positive are ignored.

    Raises:
        ValueError: if shapes, dtypes or devices do not match, embeddings are not finite, or no query has a positive.
    """
    embeddings, labels = check_batch(embeddings, labels)
    config = RankingConfig(objective, rank_temperature, heaviside or Sigmoid(), count_query)
    pairs = None if pairs is None else VirtualPairs(*pairs)
    with torch.autocast(embeddings.device.type, enabled=False):
        return rank_loss_of_checked_batch(embeddings, labels, config, queries, pairs)


def rank_loss_of_checked_batch(
    embeddings: Tensor,
    labels: Tensor,
    config: RankingConfig,
    queries: slice | Tensor | None,
    pairs: VirtualPairs | None,
) -> RankLossResult:
    """Like `smooth_rank_loss`, but assumes that `check_batch` was called and autocast is disabled."""
    check_finite_if_compiling(embeddings)
    labels = append_virtual_labels(labels, pairs)
    positives = find_positives(labels)
    if queries is not None:
        is_query = select_queries(torch.ones_like(labels, dtype=torch.bool), queries)[positives.queries]
        positives = QueryPositives(*(field[is_query] for field in positives))
    if len(positives.queries) == 0:
        raise ValueError(
            f"No query has a positive: no query has the same label as another of the {len(labels)} items. "
            "Draw batches with at least 2 samples per class (ClassBalancedBatchSampler does)."
        )
    if not torch.is_grad_enabled():
        embeddings = embeddings.detach()
    return RankLossResult(*_SmoothRankLoss.apply(embeddings, positives, config, pairs))


class PerQueryResults(NamedTuple):
    """Results per query (Q,). Preallocated and filled part by part, to avoid memory fragmentation.

    Attributes:
        value: value of the objective.
        first_match: rank of the first match.
        active: number of positives with non-zero gradient.
        has_gradient: bool, whether the query has any gradient.
    """

    value: Tensor
    first_match: Tensor
    active: Tensor
    has_gradient: Tensor


class _SmoothRankLoss(torch.autograd.Function):
    """Computes the loss and, in the same pass, its gradient; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, positives: QueryPositives, config: RankingConfig, pairs: VirtualPairs | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_items = len(embeddings) + (0 if pairs is None else len(pairs.alpha))
        block_size, part_elements = block_limits(num_items, embeddings.device)
        query_blocks = make_query_blocks(embeddings, pairs, positives.queries, block_size)
        num_positives = positives.valid.sum(1)  # ascending
        query_columns, positive_columns = (query_blocks.columns[field] for field in positives[:2])
        positives = QueryPositives(query_columns, positive_columns, positives.valid)
        buffers = Buffers(embeddings.new_empty(0), embeddings.new_empty(0))
        values = embeddings.new_empty(len(num_positives))
        per_query = PerQueryResults(values, num_positives.clone(), num_positives.clone(), num_positives > 0)
        with_gradient = ctx.needs_input_grad[0]
        for parts in split_into_blocks(num_positives.tolist(), num_items, block_size, part_elements):
            accumulate_block(query_blocks, positives, parts, config, buffers, per_query, with_gradient)
        active = per_query.active.sum() / num_positives.sum()
        if with_gradient:
            gradient = query_blocks.embedding_gradient()
            ctx.save_for_backward(gradient.div_(len(num_positives)), embeddings)
        ctx.mark_non_differentiable(per_query.first_match, active)
        return per_query.value.mean(), per_query.first_match, active

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return forbid_double_backward(*ctx.saved_tensors) * grad_output, None, None, None


class Buffers(NamedTuple):
    """Scratch memory, reused by all blocks: allocating it anew takes as long as a pass over it.

    Attributes:
        similarities: of one block.
        comparisons: of one part of a block.
    """

    similarities: Tensor
    comparisons: Tensor


def accumulate_block(
    query_blocks: QueryBlocks | MixedQueryBlocks,
    positives: QueryPositives,
    parts: list[Part],
    config: RankingConfig,
    buffers: Buffers,
    per_query: PerQueryResults,
    with_gradient: bool,
) -> None:
    """Computes one block, filling `per_query`, and accumulates its gradient in `query_blocks` if `with_gradient`."""
    start, stop = parts[0].queries.start, parts[-1].queries.stop
    similarities = buffers.similarities.resize_(stop - start, len(query_blocks))
    query_blocks.similarities(start, stop, 1 / config.temperature, out=similarities)
    for part, width in parts:
        queries, columns, valid = (field[part] for field in positives)
        rank_positives(
            similarities[part.start - start : part.stop - start],
            QueryPositives(queries, columns[:, :width], valid[:, :width]),
            config,
            buffers.comparisons,
            PerQueryResults(*(field[part] for field in per_query)),
            with_gradient,
        )
    if with_gradient:  # the similarities are now their gradient
        # queries whose positives rank far beyond every k have zero gradient; nonzero() would synchronise with a GPU
        on_cpu = similarities.device.type == "cpu"
        active = per_query.has_gradient[start:stop].nonzero().squeeze(1) if on_cpu else None
        query_blocks.accumulate_gradient(start, stop, similarities, active)


def rank_positives(
    similarities: Tensor,
    part: QueryPositives,
    config: RankingConfig,
    buffer: Tensor,
    per_query: PerQueryResults,
    with_gradient: bool,
) -> None:
    """Ranks the positives of some queries and writes the results to `per_query`.

    `similarities` (q, N) are divided by the temperature. They are overwritten, if `with_gradient` with the derivative
    of the objective with respect to the undivided similarities. `buffer` is scratch memory of any size.
    """
    queries, columns, valid = part
    positive_similarities = similarities.gather(1, columns)  # (q, P)
    query_similarity = similarities.gather(1, queries[:, None])
    similarities.scatter_(1, queries[:, None], -torch.inf)  # excludes the query from the ranking
    best_matches = positive_similarities.masked_fill(~valid, -torch.inf)
    per_query.first_match.copy_(rank_of_best(similarities, best_matches, buffer.resize_(similarities.shape)))
    if config.count_query:
        similarities.scatter_(1, queries[:, None], query_similarity)

    buffer = buffer.resize_(*columns.shape, similarities.shape[1])
    num_above, derivatives = config.heaviside(similarities, positive_similarities, part, buffer)
    ranks = num_above.add_(1)
    if not with_gradient:
        values = config.objective(ranks, valid, positive_similarities)
        per_query.value.copy_(check_per_query(values, len(queries), "objective"))
        per_query.active.zero_()
        return
    ranks.requires_grad_()
    positive_similarities.requires_grad_()
    with torch.enable_grad():
        values = check_per_query(config.objective(ranks, valid, positive_similarities), len(queries), "objective")
        gradients = torch.autograd.grad(values.sum(), (ranks, positive_similarities), materialize_grads=True)
    grad_ranks, grad_positives = (F.hardshrink(grad * valid, NEGLIGIBLE) for grad in gradients)
    per_query.value.copy_(values.detach())
    per_query.active.copy_((grad_ranks.abs() > ACTIVE_THRESHOLD).sum(1))
    per_query.has_gradient.copy_((grad_ranks.abs() + grad_positives.abs()).any(1))
    grad_ranks, grad_positives = grad_ranks / config.temperature, grad_positives / config.temperature
    torch.bmm(grad_ranks[:, None, :], derivatives, out=similarities[:, None, :])
    # raising s_qx lowers the rank of x itself
    similarities.scatter_add_(1, columns, grad_positives - grad_ranks * derivatives.sum(2))


def rank_of_best(similarities: Tensor, positive_similarities: Tensor, buffer: Tensor) -> Tensor:
    """One plus the number of negatives that are at least as similar as the best positive, (q,).

    `buffer` (q, N) is scratch memory: floats, because summing them is 4 times faster than summing bools.
    """
    best = positive_similarities.amax(1, keepdim=True)
    return 1 + torch.ge(similarities, best, out=buffer).sum(1).long() - (positive_similarities >= best).sum(1)
