"""Losses that average a per-query function of the query's similarities, computed in blocks of queries.

Each block is differentiated immediately, so the full matrix is never stored.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recall.losses.base import (
    RetrievalLoss,
    check_batch,
    check_finite_if_compiling,
    check_no_parameters,
    select_queries,
)
from lightning_recall.losses.closed_form import forbid_double_backward
from lightning_recall.losses.gallery import Gallery, MixedGallery, make_gallery
from lightning_recall.losses.part_losses import (
    ClosedFormLoss,
    PartLoss,
    PartResult,
    PerQueryLoss,
    accumulate_pairs,
    evaluate_by_autograd,
    evaluate_closed_form,
    pad_with_query,
)
from lightning_recall.losses.positives import QueryPositives, SortedQueries, sort_queries
from lightning_recall.virtual_pairs import VirtualPairs, append_virtual_labels

BLOCK_ELEMENTS = 2**22  # similarities per block (16 MiB in fp32): small matrix products are slow
PART_ELEMENTS = 2**19  # similarities per evaluation of the loss (2 MiB in fp32), which then stay in the cache
GPU_BLOCK_ELEMENTS = 2**24  # limit of blocks and of parts on a GPU (64 MiB): smaller parts are launch-bound


class PairwiseLossResult(NamedTuple):
    """Mean loss, and the fraction of queries whose nearest neighbour is a positive (exact Recall@1)."""

    loss: Tensor
    recall_at_1: Tensor


class PairwiseLoss(RetrievalLoss):
    """Base class of the losses that average a per-query function of the query's similarities.

    A subclass implements `per_query_loss(similarities, positive, negative)`, which returns one value (q,) for each of q
    queries:

    - `similarities`: (q, N) dot products of the queries with all items of the batch;
    - `positive`: (q, N) bool, the items with the query's label, except the query itself;
    - `negative`: (q, N) bool, the items with other labels.

    Every query has a positive and a negative. A query's value must depend only on its own row, since the block size
    varies. Autograd differentiates it with respect to `similarities` only; a loss with learned parameters must subclass
    `RetrievalLoss` instead. `compute` handles `queries` and `pairs`, and need not be overridden.

    A subclass without `per_query_loss` implements `closed_form`, which also computes the gradient. It is faster, since
    a block is then overwritten with its gradient.

    Attributes:
        diagnostics: exact "recall@1" within the last batch.

    >>> class DifferenceOfMeans(PairwiseLoss):
    ...     def per_query_loss(self, similarities, positive, negative):
    ...         means = [(similarities * mask).sum(1) / mask.sum(1) for mask in (positive, negative)]
    ...         return means[1] - means[0]
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(DifferenceOfMeans()(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    -0.26
    """

    shares_queries = True
    accepts_virtual = True
    per_query_loss: PerQueryLoss
    closed_form: ClosedFormLoss
    """Function (similarities (q, N), positive similarities (q, P), `QueryPositives`, with_gradient) -> `ClosedForm`.

    The similarities of the query and its positives to the query are -inf in `similarities`. Positive similarities at
    padding are arbitrary. With gradient, it overwrites `similarities` with the derivatives of each value with respect
    to them, 0 where they were -inf; without, it may leave anything there.
    """

    def compute(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """See `RetrievalLoss.forward`."""
        check_no_parameters(self, "PairwiseLoss")
        if hasattr(self, "per_query_loss"):  # first, so that a subclass of a loss in closed form can implement it
            part_loss: PartLoss = partial(evaluate_by_autograd, self.per_query_loss)
        else:
            part_loss = partial(evaluate_closed_form, self.closed_form)
        return self.mean_over_queries(part_loss, embeddings, labels, queries, pairs)

    def mean_over_queries(
        self,
        part_loss: PartLoss,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None,
        pairs: VirtualPairs | None,
    ) -> Tensor:
        """Mean of `part_loss` over the queries of a checked batch; sets the diagnostics."""
        result = pairwise_loss_of_checked_batch(embeddings, labels, part_loss, queries, pairs)
        self.diagnostics = {"recall@1": result.recall_at_1}
        return result.loss


def pairwise_loss(
    embeddings: Tensor,
    labels: Tensor,
    per_query_loss: PerQueryLoss,
    queries: slice | Tensor | None = None,
    pairs: VirtualPairs | None = None,
) -> PairwiseLossResult:
    """Mean of `per_query_loss` over the queries of a batch that have a positive and a negative.

    Args:
        embeddings: (N, D) floating point, unit length if similarities are to be cosines. The loss is computed
            in fp32, also for half-precision embeddings and under autocast; fp64 stays fp64. Second derivatives are not
            supported.
        labels: (N,) integers.
        per_query_loss: returns one value per query (q,) from the similarities (q, N) of some queries and the masks of
            their positives and negatives (q, N); the query itself is in neither mask. Autograd differentiates it with
            respect to the similarities only.
        queries: slice or indices of the queries, without duplicates; None: all. See `smooth_rank_loss`.
        pairs: M virtual items (SiMix), see `smooth_rank_loss`.

    Returns:
        The loss, and the exact Recall@1; a tie with a negative is not a hit.

    Raises:
        ValueError: if shapes, dtypes or devices do not match, embeddings are not finite, or no query has both a
            positive and a negative.
    """
    embeddings, labels = check_batch(embeddings, labels)
    pairs = None if pairs is None else VirtualPairs(*pairs)
    with torch.autocast(embeddings.device.type, enabled=False):
        part_loss = partial(evaluate_by_autograd, per_query_loss)
        return pairwise_loss_of_checked_batch(embeddings, labels, part_loss, queries, pairs)


def pairwise_loss_of_checked_batch(
    embeddings: Tensor,
    labels: Tensor,
    part_loss: PartLoss,
    queries: slice | Tensor | None,
    pairs: VirtualPairs | None,
) -> PairwiseLossResult:
    """Like `pairwise_loss`, but assumes that `check_batch` was called and autocast is disabled."""
    check_finite_if_compiling(embeddings)
    labels = append_virtual_labels(labels, pairs)
    sorted_queries = sort_queries(labels)
    has_negative = sorted_queries.num_positives < len(labels) - 1
    selected = select_queries(torch.ones_like(labels, dtype=torch.bool), queries)[sorted_queries.queries]
    sorted_queries = sorted_queries.select(has_negative & selected)
    if len(sorted_queries.queries) == 0:
        raise ValueError(
            f"No query has both a positive and a negative among the {len(labels)} items: draw batches with at least 2 "
            "samples per class and 2 classes (ClassBalancedBatchSampler does)."
        )
    if not torch.is_grad_enabled():
        embeddings = embeddings.detach()
    return PairwiseLossResult(*_PairwiseLoss.apply(embeddings, sorted_queries, part_loss, pairs))


class _PairwiseLoss(torch.autograd.Function):
    """Computes the loss and, block by block, its gradient; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, queries: SortedQueries, part_loss: PartLoss, pairs: VirtualPairs | None
    ) -> tuple[Tensor, Tensor]:
        gallery = make_gallery(embeddings, pairs)
        gradient = torch.zeros_like(embeddings) if ctx.needs_input_grad[0] else None
        num_positives = queries.num_positives.tolist()
        # preallocated to avoid memory fragmentation
        values, hits = embeddings.new_empty(len(num_positives)), torch.empty_like(queries.queries, dtype=torch.bool)
        buffer = embeddings.new_empty(0)  # reused, since allocating memory takes time
        block_queries, part_queries = block_sizes(embeddings.device, len(gallery))
        for start in range(0, len(num_positives), block_queries):
            stop = min(start + block_queries, len(num_positives))
            block = queries.queries[start:stop]
            query_embeddings = gallery.embeddings_at(block)  # (q, D)
            similarities = buffer.resize_(len(block), len(gallery))
            gallery.similarities(query_embeddings, out=similarities)
            remaining = torch.ones_like(block, dtype=torch.bool)
            for part_start in range(start, stop, part_queries):
                part = slice(part_start, min(part_start + part_queries, stop))
                rows = slice(part.start - start, part.stop - start)
                positives = pad_with_query(queries.positives(part, num_positives[part.stop - 1]))
                result = part_loss(similarities[rows], positives, gradient is not None)
                values[part], hits[part] = result.values, result.is_hit
                if gradient is not None:
                    remaining[rows] = accumulate_positives(gallery, gradient, similarities[rows], positives, result)
            if gradient is not None:
                accumulate_rows(gallery, gradient, block, query_embeddings, similarities, remaining)
        recall_at_1 = hits.float().mean()
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(len(num_positives)), embeddings)
        ctx.mark_non_differentiable(recall_at_1)
        return values.mean(), recall_at_1

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return forbid_double_backward(*ctx.saved_tensors) * grad_output, None, None, None


def block_sizes(device: torch.device, num_items: int) -> tuple[int, int]:
    """Number of queries in a block, for the matrix products, and in a part, for the loss."""
    limits = (BLOCK_ELEMENTS, PART_ELEMENTS) if device.type == "cpu" else (GPU_BLOCK_ELEMENTS, GPU_BLOCK_ELEMENTS)
    block_queries, part_queries = (max(1, limit // num_items) for limit in limits)
    return block_queries, part_queries


def accumulate_positives(
    gallery: Gallery, gradient: Tensor, similarity_gradient: Tensor, part: QueryPositives, result: PartResult
) -> Tensor:
    """Adds the derivatives of the positives to `similarity_gradient` (q, N), which holds those of the negatives.

    Where that is faster, queries without a derivative of a negative are accumulated into `gradient` (N, D) at once.

    Returns:
        (q,) bool, the queries that are not yet accumulated.
    """
    remaining = torch.ones_like(part.queries, dtype=torch.bool)
    if result.positive_gradient is None:
        return remaining
    similarity_gradient.scatter_add_(1, part.positives, result.positive_gradient)
    num_values = part.positives.shape[1] * gradient.shape[1]  # to gather for a query
    is_slow = num_values > 2 * len(gallery) or gradient.device.type != "cpu"  # nonzero() synchronises with a GPU
    if result.has_negative_gradient is None or isinstance(gallery, MixedGallery) or is_slow:
        return remaining
    without = (~result.has_negative_gradient).nonzero().squeeze(1)
    pairs = QueryPositives(*(field[without] for field in part))
    accumulate_pairs(gradient, gallery.embeddings, pairs, result.positive_gradient[without])
    return result.has_negative_gradient


def accumulate_rows(
    gallery: Gallery,
    gradient: Tensor,
    block: Tensor,
    query_embeddings: Tensor,
    similarity_gradient: Tensor,
    remaining: Tensor,
) -> None:
    """Accumulates the rows `remaining` of the gradient of the similarities (q, N) of a block into `gradient` (N, D)."""
    if gradient.device.type == "cpu" and not bool(remaining.all()):
        rows = remaining.nonzero().squeeze(1)
        block, query_embeddings, similarity_gradient = block[rows], query_embeddings[rows], similarity_gradient[rows]
    gallery.accumulate_gradient(gradient, block, query_embeddings, similarity_gradient)
