"""Anchors of UniLoss.

An anchor is a sign matrix (P, N): +1 where a positive is more similar to the query than a negative, -1 otherwise. The
signs determine the ranking of the positives, so the Recall@k of an anchor is known exactly.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_recall.losses.positives import QueryPositives


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


def sums_over_negatives(random: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Sums (num_classes, B, P) of the signs (B, P, N) of random anchors over the items of all other classes.

    Args:
        random: (B, P, N) of -1 and 1.
        classes: (N,) class of each item, from 0 to num_classes - 1.
        num_classes: number of classes.
    """
    by_item = random.flatten(0, 1).T  # (N, B * P)
    class_sums = random.new_zeros(num_classes, by_item.shape[1]).index_add_(0, classes, by_item)
    return (by_item.sum(0) - class_sums).view(num_classes, *random.shape[:2])


def flipped_comparisons(part: QueryPositives, num_items: int, uniform: Tensor) -> Tensor:
    """Returns which comparison is flipped in each anchor, as flat indices (q, A) into the (P, N) comparison matrix.

    Args:
        part: q queries and their positives.
        num_items: N.
        uniform: (A, 2) in [0, 1), selects the positive and the negative.
    """
    num_positives = part.valid.sum(1, keepdim=True)
    positive = (uniform[:, 0] * num_positives).long()  # valid positives come first
    negative_ordinal = (uniform[:, 1] * (num_items - 1 - num_positives)).long()  # from 0
    positives = part.positives.masked_fill(~part.valid, num_items)
    same_class = torch.cat([positives, part.queries[:, None]], 1).sort(1).values
    # number of negatives with a smaller index than each item of the class
    num_before = same_class - torch.arange(same_class.shape[1], device=same_class.device)
    num_before.masked_fill_(same_class == num_items, num_items)  # padding
    negative = negative_ordinal + torch.searchsorted(num_before, negative_ordinal, right=True)
    return positive * num_items + negative


def corrected_comparisons(wrong: Tensor, uniform: Tensor, fallback: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which wrong comparison is corrected in each anchor.

    Args:
        wrong: (q, P * N) floating point, 1 for comparisons with the wrong sign, 0 for others.
        uniform: (A,) in [0, 1), selects the comparisons.
        fallback: (q, A) indices for queries without a wrong comparison.

    Returns:
        Flat indices (q, A) into the (P, N) comparison matrix, and a mask (q, 1) of queries with a wrong comparison.
    """
    # floats: the cumulative sum of bools or integers is ten times slower; float32 holds integers up to 2^24
    cumulative = wrong.cumsum(1, dtype=wrong.dtype if wrong.shape[1] <= 2**24 else torch.float64)
    total = cumulative[:, -1:]
    ordinal = (uniform * total.to(uniform.dtype)).floor() + 1
    indices = torch.searchsorted(cumulative, ordinal.to(cumulative.dtype))
    return torch.where(total > 0, indices, fallback), total > 0


def recalls_at_anchors(
    counts: Tensor,
    flipped: Tensor,
    corrected: Tensor,
    has_wrong: Tensor,
    valid: Tensor,
    random_counts: Tensor,
    ks: Tensor,
) -> Tensor:
    """Recall (q, M) at the anchors, float64, with M = 1 + 2 A + B.

    The anchors are: the perfect ranking, A with one flipped sign, A with one corrected sign, and B random sign
    matrices.

    Args:
        counts: (q, P) number of negatives ranked above each positive, in the actual ranking.
        flipped: (q, A) positives whose comparison is flipped.
        corrected: (q, A) positives whose wrong comparison is corrected. If the query has none, a correct comparison is
            flipped.
        has_wrong: (q, 1) bool, whether the query has a wrong comparison.
        valid: (q, P) bool, False for padding.
        random_counts: (q, B, P) like `counts`, in the random anchors.
        ks: (K,) cut-offs.
    """
    width = valid.shape[1]
    zero_counts = torch.zeros_like(counts)[:, None]  # (q, 1, P)
    corrected_hot = one_hot(corrected, width)  # (q, A, P)
    corrected_counts = torch.where(has_wrong[:, :, None], counts[:, None] - corrected_hot, corrected_hot)
    all_counts = torch.cat([zero_counts, one_hot(flipped, width), corrected_counts, random_counts], 1)
    all_counts = all_counts.masked_fill(~valid[:, None], torch.iinfo(torch.int64).max // 2)
    return recall_from_counts(all_counts, valid.sum(1), ks)
