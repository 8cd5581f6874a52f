"""Anchors of UniLoss.

An anchor is a sign matrix (P, N): +1 where a positive is more similar to the query than a negative, -1 otherwise. The
signs determine the ranking of the positives, so the Recall@k of an anchor is known exactly.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot


class AnchorSamples(NamedTuple):
    """Random numbers that define the anchors; shared by all queries of a batch.

    Attributes:
        flip_uniforms: (A, 2) in [0, 1), select the positive and the negative whose comparison is flipped.
        correct_uniforms: (A,) in [0, 1), select the wrong comparison that is corrected.
        random: (B, P, N) of -1 and 1: the random anchors.
    """

    flip_uniforms: Tensor
    correct_uniforms: Tensor
    random: Tensor


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
    """Returns which comparison is flipped in each anchor, as flat indices (q, A) into the (P, N) comparison matrix.

    Args:
        valid: (q, P) bool, False for padding, which comes last.
        negative: (q, N) bool.
        uniform: (A, 2) in [0, 1), selects the positive and the negative.
    """
    positive = (uniform[:, 0] * valid.sum(1, keepdim=True)).long()  # valid positives come first
    cumulative = negative.cumsum(1)  # (q, N)
    negative_ordinal = (uniform[:, 1] * cumulative[:, -1:]).long() + 1
    return positive * negative.shape[1] + torch.searchsorted(cumulative, negative_ordinal)


def corrected_comparisons(wrong: Tensor, uniform: Tensor, fallback: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which wrong comparison is corrected in each anchor.

    Args:
        wrong: (q, P * N) bool, True for comparisons with the wrong sign.
        uniform: (A,) in [0, 1), selects the comparisons.
        fallback: (q, A) indices for queries without a wrong comparison.

    Returns:
        Flat indices (q, A) into the (P, N) comparison matrix, and a mask (q, 1) of queries with a wrong comparison.
    """
    cumulative = wrong.cumsum(1)
    total = cumulative[:, -1:]
    indices = torch.searchsorted(cumulative, (uniform * total).long() + 1)
    return torch.where(total > 0, indices, fallback), total > 0


def recalls_at_anchors(
    counts: Tensor,
    flipped: Tensor,
    corrected: Tensor,
    has_wrong: Tensor,
    valid: Tensor,
    negative: Tensor,
    ks: Tensor,
    random: Tensor,
) -> Tensor:
    """Recall (q, M) at the anchors, with M = 1 + 2 A + B.

    The anchors are: the perfect ranking, A with one flipped sign, A with one corrected sign, and B random sign
    matrices.

    Args:
        counts: (q, P) number of negatives ranked above each positive, in the actual ranking.
        flipped: (q, A) positives whose comparison is flipped.
        corrected: (q, A) positives whose wrong comparison is corrected. If the query has none, a correct comparison is
            flipped.
        has_wrong: (q, 1) bool, whether the query has a wrong comparison.
        valid: (q, P) bool, False for padding.
        negative: (q, N) bool.
        ks: (K,) cut-offs.
        random: (B, P, N) of -1 and 1: the random anchors.
    """
    width = valid.shape[1]
    zero_counts = torch.zeros_like(counts)[:, None]  # (q, 1, P)
    corrected_hot = one_hot(corrected, width)  # (q, A, P)
    corrected_counts = torch.where(has_wrong[:, :, None], counts[:, None] - corrected_hot, corrected_hot)
    negative_is_higher = (random[:, :width] < 0).to(random.dtype)  # (B, P, N)
    random_counts = (
        (negative.to(negative_is_higher.dtype) @ negative_is_higher.flatten(0, 1).T).view(len(counts), -1, width).long()
    )
    all_counts = torch.cat([zero_counts, one_hot(flipped, width), corrected_counts, random_counts], 1)
    all_counts = all_counts.masked_fill(~valid[:, None], negative.shape[1] + int(ks.max()))
    return recall_from_counts(all_counts, valid.sum(1), ks).to(random.dtype)
