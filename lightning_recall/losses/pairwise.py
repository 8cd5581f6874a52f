"""Losses that average a per-query function of the query's similarities, computed in blocks of queries.

Each block is differentiated immediately, so the full matrix is never stored.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recall.losses.base import (
    RetrievalLoss,
    check_batch,
    check_finite_if_compiling,
    check_no_parameters,
    check_per_query,
    select_queries,
)
from lightning_recall.losses.closed_form import forbid_double_backward
from lightning_recall.losses.gallery import make_gallery
from lightning_recall.virtual_pairs import VirtualPairs, append_virtual_labels

PerQueryLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Similarities (q, N), and masks of positives and negatives (q, N) -> one value per query (q,)."""

BLOCK_ELEMENTS = 2**20  # similarities per block (4 MiB in fp32): a loss allocates about ten such tensors
GPU_BLOCK_ELEMENTS = 2**24  # the same on a GPU (64 MiB): smaller blocks are launch-bound


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
    per_query_loss: Callable[..., Tensor]

    def compute(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """See `RetrievalLoss.forward`."""
        check_no_parameters(self, "PairwiseLoss")
        return self.mean_over_queries(self.per_query_loss, embeddings, labels, queries, pairs)

    def mean_over_queries(
        self,
        per_query_loss: PerQueryLoss,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None,
        pairs: VirtualPairs | None,
    ) -> Tensor:
        """Mean of `per_query_loss` over the queries of a checked batch; sets the diagnostics."""
        result = pairwise_loss_of_checked_batch(embeddings, labels, per_query_loss, queries, pairs)
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
        return pairwise_loss_of_checked_batch(embeddings, labels, per_query_loss, queries, pairs)


def pairwise_loss_of_checked_batch(
    embeddings: Tensor,
    labels: Tensor,
    per_query_loss: PerQueryLoss,
    queries: slice | Tensor | None,
    pairs: VirtualPairs | None,
) -> PairwiseLossResult:
    """Like `pairwise_loss`, but assumes that `check_batch` was called and autocast is disabled."""
    check_finite_if_compiling(embeddings)
    labels = append_virtual_labels(labels, pairs)
    _, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    is_query = select_queries((counts[inverse] > 1) & (counts[inverse] < len(labels)), queries)
    indices = is_query.nonzero().squeeze(1)
    if len(indices) == 0:
        raise ValueError(
            f"No query has both a positive and a negative among the {len(labels)} items: draw batches with at least 2 "
            "samples per class and 2 classes (ClassBalancedBatchSampler does)."
        )
    if not torch.is_grad_enabled():
        embeddings = embeddings.detach()
    return PairwiseLossResult(*_PairwiseLoss.apply(embeddings, labels, indices, per_query_loss, pairs))


class _PairwiseLoss(torch.autograd.Function):
    """Computes the loss and, block by block, its gradient; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        labels: Tensor,
        indices: Tensor,
        per_query_loss: PerQueryLoss,
        pairs: VirtualPairs | None,
    ) -> tuple[Tensor, Tensor]:
        gallery = make_gallery(embeddings, pairs)
        gradient = torch.zeros_like(embeddings) if ctx.needs_input_grad[0] else None
        # preallocated to avoid memory fragmentation
        total, hits = embeddings.new_zeros(()), torch.empty_like(indices, dtype=torch.bool)
        block_elements = BLOCK_ELEMENTS if embeddings.device.type == "cpu" else GPU_BLOCK_ELEMENTS
        block_queries = max(1, block_elements // len(gallery))
        for block, hit in zip(torch.split(indices, block_queries), torch.split(hits, block_queries), strict=True):
            query_embeddings = gallery.embeddings_at(block)  # (q, D)
            similarities = gallery.similarities(query_embeddings)  # (q, N)
            positive = labels[block, None] == labels
            negative = ~positive
            positive.scatter_(1, block[:, None], False)
            best = [similarities.masked_fill(~mask, -torch.inf).amax(1) for mask in (positive, negative)]
            torch.gt(best[0], best[1], out=hit)
            similarities.requires_grad_(gradient is not None)
            with torch.set_grad_enabled(gradient is not None):
                values = per_query_loss(similarities, positive, negative)
                value = check_per_query(values, len(block), "per_query_loss").sum()
            if gradient is not None:
                (similarity_gradient,) = torch.autograd.grad(value, similarities)
                gallery.accumulate_gradient(gradient, block, query_embeddings, similarity_gradient)
            total += value.detach()
        recall_at_1 = hits.float().mean()
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(len(indices)), embeddings)
        ctx.mark_non_differentiable(recall_at_1)
        return total / len(indices), recall_at_1

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return forbid_double_backward(*ctx.saved_tensors) * grad_output, None, None, None, None
