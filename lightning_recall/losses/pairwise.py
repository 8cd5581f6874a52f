"""Losses that look at each query's similarities by themselves, block by block.

Such a loss is the mean over the queries of a function of one row of the similarity matrix. Its gradient by a block of
rows is taken as soon as they are there, so that the matrix is never whole.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recall.losses.base import check_batch, check_finite
from lightning_recall.losses.closed_form import first_order
from lightning_recall.losses.gallery import Gallery, MixedGallery, VirtualPairs

QueryValues = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Similarities (q, N), which items are positives and which negatives (q, N) bool -> one value a query (q,)."""

BLOCK_ELEMENTS = 2**20  # similarities held at a time, 4 MiB in fp32: a loss makes some ten arrays of that size
DEVICE_ELEMENTS = 2**24  # on a GPU, 64 MiB: it would wait for the kernels of a smaller block to start


class PairwiseLoss(NamedTuple):
    """The mean over the queries, and the share of them whose most similar item is a positive: the exact Recall@1."""

    loss: Tensor
    hits: Tensor


def pairwise_loss(
    embeddings: Tensor,
    labels: Tensor,
    values_of: QueryValues,
    queries: slice | Tensor | None = None,
    pairs: VirtualPairs | None = None,
) -> PairwiseLoss:
    """Mean of `values_of` over the queries of a batch that have a positive and a negative.

    Args:
        embeddings: (N, D) floating point, unit length if similarities are to be cosines; computed in fp32 at least.
        labels: (N,) integers.
        values_of: each query's value; differentiated by autograd with respect to the similarities only.
        queries: rows that query, each once; None: all. As of `smooth_rank_loss`.
        pairs: M virtual items to add (SiMix), as of `smooth_rank_loss`.

    Raises:
        ValueError: where shapes, dtypes or devices do not fit, embeddings are not finite, or no query has both a
            positive and a negative.
    """
    embeddings, labels = check_batch(embeddings, labels)
    check_finite(embeddings)
    if pairs is not None:
        labels = torch.cat([labels, labels[pairs[0]]])
    _, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    asks = (counts[inverse] > 1) & (counts[inverse] < len(labels))
    if queries is not None:
        chosen = torch.zeros_like(asks)
        chosen[queries] = True
        asks &= chosen
    rows = asks.nonzero().squeeze(1)
    if len(rows) == 0:
        raise ValueError(
            f"No query has both a positive and a negative among the {len(labels)} items: draw batches with at least 2 "
            "samples per class and 2 classes (ClassBalancedBatchSampler does)."
        )
    if not torch.is_grad_enabled():
        embeddings = embeddings.detach()
    return PairwiseLoss(*_PairwiseLoss.apply(embeddings, labels, rows, values_of, pairs))


class _PairwiseLoss(torch.autograd.Function):
    """Computes the loss and, block by block, its gradient; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        labels: Tensor,
        queries: Tensor,
        values_of: QueryValues,
        pairs: VirtualPairs | None,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(embeddings.device.type, enabled=False):
            gallery = Gallery(embeddings) if pairs is None else MixedGallery(embeddings, pairs)
            gradient = torch.zeros_like(embeddings) if ctx.needs_input_grad[0] else None
            # small tensors that outlive a block would cut up the memory that the next one needs
            total, hits = embeddings.new_zeros(()), torch.empty_like(queries, dtype=torch.bool)
            at_a_time = BLOCK_ELEMENTS if embeddings.device.type == "cpu" else DEVICE_ELEMENTS
            num_rows = max(1, at_a_time // len(gallery))
            for part, hit in zip(torch.split(queries, num_rows), torch.split(hits, num_rows), strict=True):
                rows = gallery.rows(part)  # (q, D)
                similarities = gallery.similarities(rows)  # (q, N)
                positive = labels[part, None] == labels
                negative = ~positive
                positive.scatter_(1, part[:, None], False)
                best = [similarities.masked_fill(~mask, -torch.inf).amax(1) for mask in (positive, negative)]
                torch.gt(best[0], best[1], out=hit)
                similarities.requires_grad_(gradient is not None)
                with torch.set_grad_enabled(gradient is not None):
                    value = values_of(similarities, positive, negative).sum()
                if gradient is not None:
                    (weights,) = torch.autograd.grad(value, similarities)
                    gallery.add_gradient(gradient, part, rows, weights)
                total += value.detach()
            share = hits.float().mean()
            if gradient is not None:
                ctx.save_for_backward(gradient.div_(len(queries)), embeddings)
            ctx.mark_non_differentiable(share)
            return total / len(queries), share

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return first_order(*ctx.saved_tensors) * grad_output, None, None, None, None
