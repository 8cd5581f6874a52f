"""Anchors of UniLoss: configurations of comparisons for which the recall is known."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Draws(NamedTuple):
    """Random numbers of a batch, the same for each of its queries.

    good: (G, 2) in [0, 1), which positive and which negative of a query.
    near: (G,) in [0, 1), which wrong comparison of a query.
    bad: (B, P, N) of -1 and 1.
    """

    good: Tensor
    near: Tensor
    bad: Tensor


def recall_of_counts(counts: Tensor, num_positives: Tensor, ks: Tensor) -> Tensor:
    """Recall@k, averaged over the cut-offs, from how many negatives stand ahead of each positive.

    The j-th best positive, from 1, has the rank j plus its count; found are those of rank k at most.

    Args:
        counts: (Q, M, P) of each query and anchor; padding must be large.
        num_positives: (Q,).
        ks: (K,) cut-offs.

    Returns:
        (Q, M) float64: the share found of the min(k, number of positives) that could be.
    """
    ranks = counts.sort(-1).values + torch.arange(1, counts.shape[-1] + 1, device=counts.device)
    found = (ranks[..., None] <= ks).sum(-2)  # (Q, M, K)
    return (found.double() / torch.minimum(ks, num_positives[:, None])[:, None, :]).mean(-1)


def flipped(valid: Tensor, negative: Tensor, shares: Tensor) -> Tensor:
    """Places (q, G) in P x N of a comparison of each query: the drawn shares (G, 2) of its positives and negatives."""
    positive = (shares[:, 0] * valid.sum(1, keepdim=True)).long()  # valid ones stand first
    ahead = negative.cumsum(1)  # (q, N)
    wanted = (shares[:, 1] * ahead[:, -1:]).long() + 1
    return positive * negative.shape[1] + torch.searchsorted(ahead, wanted)


def put_right(wrong: Tensor, shares: Tensor, otherwise: Tensor) -> tuple[Tensor, Tensor]:
    """Places (q, G) of a wrong comparison of each query: the drawn shares (G,) of all; and whether it has one (q, 1).

    Queries without a wrong one get the places `otherwise` (q, G), to be flipped.
    """
    ahead = wrong.cumsum(1)
    total = ahead[:, -1:]
    found = torch.searchsorted(ahead, (shares * total).long() + 1)
    return torch.where(total > 0, found, otherwise), total > 0


def recalls_at_anchors(
    counts: Tensor,
    good: Tensor,
    near: Tensor,
    some_wrong: Tensor,
    valid: Tensor,
    negative: Tensor,
    ks: Tensor,
    draws: Draws,
) -> Tensor:
    """Recall (q, M) at the anchors: the best, those with one sign flipped, with one put right, and random ones.

    Args:
        counts: (q, P) negatives ahead, by the signs of u.
        good: (q, G) positives whose comparison is flipped.
        near: (q, G) positives whose comparison is put right, or flipped if none of the query is wrong.
        some_wrong: (q, 1).
        valid: (q, P).
        negative: (q, N).
        ks: (K,).
        draws: whose signs are the random anchors.
    """
    one = nn.functional.one_hot
    width = valid.shape[1]
    nothing = torch.zeros_like(counts)[:, None]  # (q, 1, P)
    of_near = torch.where(some_wrong[:, :, None], counts[:, None] - one(near, width), one(near, width))
    below = (draws.bad[:, :width] < 0).to(draws.bad.dtype)  # (B, P, N)
    of_bad = (negative.to(below.dtype) @ below.flatten(0, 1).T).view(len(counts), -1, width).long()
    everything = torch.cat([nothing, one(good, width), of_near, of_bad], 1)
    everything = everything.masked_fill(~valid[:, None], negative.shape[1] + int(ks.max()))
    return recall_of_counts(everything, valid.sum(1), ks).to(draws.bad.dtype)
