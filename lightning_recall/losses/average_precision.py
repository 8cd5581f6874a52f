"""Average precision, smooth in two ways: Smooth-AP and SupAP."""

import torch
from torch import Tensor

from lightning_recall.losses.base import RetrievalLoss, check_above_zero
from lightning_recall.losses.gallery import VirtualPairs
from lightning_recall.losses.heaviside import SupHeaviside
from lightning_recall.losses.ranking import smooth_rank_loss


def mean_of_ratios(places: Tensor, ranks: Tensor, valid: Tensor) -> Tensor:
    """One minus the mean over the positives of place over rank, (Q,)."""
    return 1 - (places / ranks * valid).sum(1) / valid.sum(1)


class SmoothAPLoss(RetrievalLoss):
    """One minus a smooth average precision: every item queries all the others.

    With G(t) = sigmoid(t / rank_temperature), P_q the other items of q's class and s the dot products:

        AP_q = 1/|P_q| sum over x in P_q of
               (1 + sum over z in P_q but x of G(s_qz - s_qx)) / (1 + sum over z not in {q, x} of G(s_qz - s_qx))
        loss = 1 - mean over q of AP_q

    Source: Brown, Xie, Kalogeiton, Zisserman, "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV
    2020. Its code counts the query among its own positives; here it is left out, as in the test.

    Classes may have any size and items any order; an item alone in its class is no query. In N^2 |P| time and the
    memory of a block, in fp32 at least.

    Args:
        rank_temperature: width of the comparison in similarity, above 0; 0.01 in the paper.

    Shapes: embeddings (N, D), labels (N,) -> scalar.

    Attributes:
        diagnostics: of the last batch: the exact "recall@1" within it, and "active_positives", as of `RecallAtKLoss`.

    Raises:
        ValueError: for a temperature that is not above 0, and batches that `smooth_rank_loss` refuses.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(SmoothAPLoss()(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    0.25
    """

    shares_queries = True
    accepts_virtual = True

    def __init__(self, rank_temperature: float = 0.01) -> None:
        super().__init__()
        self.rank_temperature = rank_temperature
        self.check_settings()

    def check_settings(self) -> None:
        """As `RetrievalLoss`."""
        check_above_zero(rank_temperature=self.rank_temperature)

    def compute(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """As `RetrievalLoss`."""

        def missed(ranks: Tensor, valid: Tensor, at_positives: Tensor) -> Tensor:
            ahead = torch.sigmoid(at_positives[:, None, :] - at_positives[:, :, None]) * valid[:, None, :]  # (q, P, P)
            return mean_of_ratios(ahead.sum(2) + 0.5, ranks, valid)  # x itself stands in it with 0.5

        result = smooth_rank_loss(embeddings, labels, missed, self.rank_temperature, queries=queries, pairs=pairs)
        self.diagnostics = result.diagnostics((1,))
        return result.loss


class SupAPLoss(RetrievalLoss):
    """One minus a lower bound of average precision whose gradient does not vanish for positives ranked far too low.

    AP_q is the mean over the positives of their exact place among the positives over their rank, with the rank from
    `SupHeaviside`: 1 for each positive ahead, without gradient, and sigmoid, then slope, for the items of other classes.
    It does not train the places among the positives, and wants a second loss beside it that draws them together:
    `MultipleLosses` of it and `NormalizedSoftmaxLoss` or `ContrastiveLoss`.

    Source: Ramzi et al., arXiv 2309.08250; Ramzi, Thome, Rambour, Audebert, Bitot, "Robust and Decomposable Average
    Precision for Image Retrieval", NeurIPS 2021.

    Args:
        rank_temperature: tau, above 0; 0.01 in the paper.
        delta: difference of similarity from which the comparison is linear, above 0.
        slope: of the linear part, above 0.
        start: added where an item is ahead, from 0.
        offset: where the linear part begins; None: where the curved one ends.

    Shapes: embeddings (N, D), labels (N,) -> scalar.

    Attributes:
        diagnostics: of the last batch: the exact "recall@1" within it, and "active_positives".

    Raises:
        ValueError: for settings out of range, and batches that `smooth_rank_loss` refuses.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(SupAPLoss()(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    0.4629
    """

    shares_queries = True
    accepts_virtual = True

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
        """As `RetrievalLoss`."""
        self.comparison()

    def comparison(self) -> SupHeaviside:
        """The comparison of the present settings."""
        return SupHeaviside(self.rank_temperature, self.delta, self.slope, self.start, self.offset)

    def compute(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """As `RetrievalLoss`."""

        def missed(ranks: Tensor, valid: Tensor, at_positives: Tensor) -> Tensor:
            better = (at_positives[:, None, :] > at_positives[:, :, None]) & valid[:, None, :]  # (q, P, P)
            return mean_of_ratios(1 + better.sum(2), ranks, valid)

        result = smooth_rank_loss(
            embeddings,
            labels,
            missed,
            self.rank_temperature,
            queries=queries,
            pairs=pairs,
            comparison=self.comparison(),
        )
        self.diagnostics = result.diagnostics((1,))
        return result.loss
