"""Smooth average-precision losses: Smooth-AP and SupAP."""

import torch
from torch import Tensor

from lightning_recall.checks import check_above_zero
from lightning_recall.losses.heaviside import SupHeaviside
from lightning_recall.losses.rank_loss import RankLoss


def one_minus_average_precision(positive_ranks: Tensor, ranks: Tensor, valid: Tensor) -> Tensor:
    """Returns 1 - AP (Q,): AP is the mean over positives of rank among positives divided by rank among all items.

    Args:
        positive_ranks: (Q, P) rank of each positive among the positives, from 1.
        ranks: (Q, P) rank of each positive among all items, from 1.
        valid: (Q, P) bool, False for padding.
    """
    return 1 - (positive_ranks / ranks * valid).sum(1) / valid.sum(1)


class SmoothAPLoss(RankLoss):
    """One minus a smooth average precision: every item is a query against all others.

    With G(t) = sigmoid(t / rank_temperature), P_q the other items of q's class and s the dot products:

        AP_q = 1/|P_q| sum over x in P_q of
               (1 + sum over z in P_q, z != x, of G(s_qz - s_qx)) / (1 + sum over z not in {q, x} of G(s_qz - s_qx))
        loss = 1 - mean over q of AP_q

    Source: Brown, Xie, Kalogeiton, Zisserman, "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV
    2020. Its code counts the query among its own positives; here it is excluded, as in evaluation.

    Classes may have any size and items any order. Items that are alone in their class are not queries. Takes
    O(N^2 |P|) time. Memory is bounded because queries are processed in blocks. Computed in fp32 or fp64.

    Args:
        rank_temperature: sigmoid temperature, in units of similarity, above 0; 0.01 in the paper.

    Shapes: embeddings (N, D), labels (N,) -> scalar.

    Attributes:
        diagnostics: exact "recall@1" within the last batch, and "active_positives" (see `RecallAtKLoss`).

    Raises:
        ValueError: for a temperature that is not above 0, and batches that `smooth_rank_loss` rejects.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(SmoothAPLoss()(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    0.25
    """

    def __init__(self, rank_temperature: float = 0.01) -> None:
        super().__init__()
        self.rank_temperature = rank_temperature
        self.check_settings()

    def check_settings(self) -> None:
        """See `RetrievalLoss.check_settings`."""
        check_above_zero(rank_temperature=self.rank_temperature)

    def objective(self, ranks: Tensor, valid: Tensor, similarities: Tensor) -> Tensor:
        """One minus the smooth average precision (Q,)."""
        ahead = torch.sigmoid(similarities[:, None, :] - similarities[:, :, None]) * valid[:, None, :]  # (q, P, P)
        positive_ranks = ahead.sum(2) + 0.5  # the sum includes x itself, with sigmoid(0) = 0.5
        return one_minus_average_precision(positive_ranks, ranks, valid)


class SupAPLoss(RankLoss):
    """One minus a lower bound of average precision whose gradient does not vanish for positives ranked far too low.

    AP_q is the mean over positives of (exact rank among positives) / (smooth rank among all items). `SupHeaviside`
    defines the smooth rank: each positive ranked higher adds 1 without gradient; each negative adds a sigmoid, which
    becomes linear above delta. The loss does not train the order among positives. Combine it with a loss
    that pulls positives together, for example `MultipleLosses([SupAPLoss(), ContrastiveLoss()])`.

    Source: Ramzi et al., arXiv 2309.08250; Ramzi, Thome, Rambour, Audebert, Bitot, "Robust and Decomposable Average
    Precision for Image Retrieval", NeurIPS 2021.

    Args:
        rank_temperature: tau, in units of similarity, above 0; 0.01 in the paper.
        delta: similarity difference above which the comparison is linear, above 0.
        slope: slope of the linear part, above 0.
        start: jump of the comparison at a similarity difference of 0, at least 0; 0.5 is the authors' value for SOP.
        offset: value of the linear part at delta. None: the value at which the comparison is continuous.

    Shapes: embeddings (N, D), labels (N,) -> scalar.

    Attributes:
        diagnostics: exact "recall@1" within the last batch, and "active_positives" (see `RecallAtKLoss`).

    Raises:
        ValueError: for settings out of range, and batches that `smooth_rank_loss` rejects.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(SupAPLoss()(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    0.4629
    """

    def __init__(
        self,
        rank_temperature: float = 0.01,
        delta: float = 0.05,
        slope: float = 100.0,
        start: float = 0.5,
        offset: float | None = None,
    ) -> None:
        super().__init__()
        self.rank_temperature = rank_temperature
        self.delta = delta
        self.slope = slope
        self.start = start
        self.offset = offset
        self.check_settings()

    def check_settings(self) -> None:
        """See `RetrievalLoss.check_settings`."""
        self.heaviside()

    def heaviside(self) -> SupHeaviside:
        """Returns the smooth comparison for the current settings."""
        return SupHeaviside(self.rank_temperature, self.delta, self.slope, self.start, self.offset)

    def objective(self, ranks: Tensor, valid: Tensor, similarities: Tensor) -> Tensor:
        """One minus the lower bound of the average precision (Q,)."""
        is_higher = (similarities[:, None, :] > similarities[:, :, None]) & valid[:, None, :]  # (q, P, P)
        return one_minus_average_precision(1 + is_higher.sum(2), ranks, valid)
