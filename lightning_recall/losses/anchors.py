"""Anchors of UniLoss: binary matrices of pairwise comparisons whose Recall@k can be computed exactly."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot


class AnchorSamples(NamedTuple):
    """Random numbers that define the anchors; shared by all queries of a batch.

    Attributes:
        good: (G, 2) in [0, 1): relative positions of the positive and the negative whose sign is flipped.
        near: (G,) in [0, 1): relative position of the wrong comparison that is corrected.
        bad: (B, P, N) of -1 and 1: the random anchors.
    """

    good: Tensor
    near: Tensor
    bad: Tensor


def recall_from_counts(counts: Tensor, num_positives: Tensor, ks: Tensor) -> Tensor:
    """Recall@k, averaged over the cut-offs, from the number of negatives ranked above each positive.

    The j-th best positive (j from 1) has rank j plus its count; it is retrieved if its rank is at most k.

    Args:
        counts: (Q, M, P) number of negatives above each positive, per query and anchor; padded entries must be larger
            than any k.
        num_positives: (Q,).
        ks: (K,) cut-offs.

    Returns:
        (Q, M) float64: fraction of min(k, number of positives) that is retrieved.
    """
    ranks = counts.sort(-1).values + torch.arange(1, counts.shape[-1] + 1, device=counts.device)
    retrieved = (ranks[..., None] <= ks).sum(-2)  # (Q, M, K)
    return (retrieved.double() / torch.minimum(ks, num_positives[:, None])[:, None, :]).mean(-1)


def flipped_comparisons(valid: Tensor, negative: Tensor, uniform: Tensor) -> Tensor:
    """Returns the flat indices (q, G) into P x N of the comparisons whose sign is flipped.

    Args:
        valid: (q, P) bool, False for padding, which comes last.
        negative: (q, N) bool.
        uniform: (G, 2) in [0, 1), selects the positive and the negative.
    """
    positive = (uniform[:, 0] * valid.sum(1, keepdim=True)).long()  # valid positives come first
    cumulative = negative.cumsum(1)  # (q, N)
    wanted = (uniform[:, 1] * cumulative[:, -1:]).long() + 1
    return positive * negative.shape[1] + torch.searchsorted(cumulative, wanted)


def corrected_comparisons(wrong: Tensor, uniform: Tensor, fallback: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the flat indices (q, G) of the wrong comparisons that are corrected, and whether a query has any (q, 1).

    Args:
        wrong: (q, C) bool.
        uniform: (G,) in [0, 1), selects the comparisons.
        fallback: (q, G), indices for queries without a wrong comparison.
    """
    cumulative = wrong.cumsum(1)
    total = cumulative[:, -1:]
    indices = torch.searchsorted(cumulative, (uniform * total).long() + 1)
    return torch.where(total > 0, indices, fallback), total > 0


def recalls_at_anchors(
    counts: Tensor,
    good: Tensor,
    near: Tensor,
    has_wrong: Tensor,
    valid: Tensor,
    negative: Tensor,
    ks: Tensor,
    samples: AnchorSamples,
) -> Tensor:
    """Recall (q, M) at the anchors.

    These are the perfect one, those with one sign flipped, those with one wrong sign corrected, and random ones.

    Args:
        counts: (q, P) number of negatives ranked above each positive, from the signs of u.
        good: (q, G) positives whose comparison is flipped.
        near: (q, G) positives whose wrong comparison is corrected, or flipped if the query has no wrong comparison.
        has_wrong: (q, 1) bool, whether the query has a wrong comparison.
        valid: (q, P) bool, False for padding.
        negative: (q, N) bool.
        ks: (K,) cut-offs.
        samples: its `bad` signs are the random anchors.
    """
    width = valid.shape[1]
    zero_counts = torch.zeros_like(counts)[:, None]  # (q, 1, P)
    near_hot = one_hot(near, width)  # (q, G, P)
    near_counts = torch.where(has_wrong[:, :, None], counts[:, None] - near_hot, near_hot)
    is_below = (samples.bad[:, :width] < 0).to(samples.bad.dtype)  # (B, P, N)
    random_counts = (negative.to(is_below.dtype) @ is_below.flatten(0, 1).T).view(len(counts), -1, width).long()
    all_counts = torch.cat([zero_counts, one_hot(good, width), near_counts, random_counts], 1)
    all_counts = all_counts.masked_fill(~valid[:, None], negative.shape[1] + int(ks.max()))
    return recall_from_counts(all_counts, valid.sum(1), ks).to(samples.bad.dtype)
