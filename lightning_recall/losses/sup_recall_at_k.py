"""Recall@k with a rank whose gradient does not vanish: SupRecall."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_recall.losses.base import RetrievalLoss, check_above_zero, check_ks
from lightning_recall.losses.gallery import VirtualPairs
from lightning_recall.losses.heaviside import SupHeaviside
from lightning_recall.losses.ranking import smooth_rank_loss
from lightning_recall.losses.recall_at_k import smooth_recall_at_k


class SupRecallAtKLoss(RetrievalLoss):
    """One minus a smooth Recall@k in which positives ranked far too low still have a gradient.

    As `RecallAtKLoss`, without its cap at k, and with the rank from `SupHeaviside`: 1 for each positive ahead, without
    gradient, and sigmoid, then slope, for the items of other classes. The sigmoid alone is flat for items that are more
    than some 0.05 more similar than the positive: they push nothing. The cut is a sigmoid here too, so that a positive
    some twenty ranks beyond the largest k has no gradient still.

        recall_k(q) = sum over x in P_q of sigmoid((k - rank(q, x)) / k_temperature) / min(k, |P_q|)

    Source: Ramzi et al., "Optimization of Rank Losses for Image Retrieval", 2023 (arXiv 2309.08250), SupR@K. It trains
    beside a second loss that draws positives together: `MultipleLosses` of it and `NormalizedSoftmaxLoss`, weights 0.9 and 0.1.

    Args:
        ks: cut-offs, integers from 1.
        k_temperature: width of the cut in ranks, above 0.
        rank_temperature: tau, above 0; 0.01 in the paper.
        delta: difference of similarity from which the comparison is linear, above 0.
        slope: of the linear part, above 0.
        start: added where an item is ahead, from 0.
        offset: where the linear part begins; None: where the curved one ends.

    Shapes: embeddings (N, D), labels (N,) -> scalar.

    Attributes:
        diagnostics: of the last batch, as of `RecallAtKLoss`.

    Raises:
        ValueError: for settings out of range, and batches that `smooth_rank_loss` refuses.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(SupRecallAtKLoss(ks=(1, 2))(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    0.6922
    """

    shares_queries = True
    accepts_virtual = True

    def __init__(
        self,
        ks: Sequence[int] = (1, 2, 4, 8, 16),
        k_temperature: float = 1.0,
        rank_temperature: float = 0.01,
        delta: float = 0.05,
        slope: float = 100.0,
        start: float = 0.5,
        offset: float | None = None,
    ) -> None:
        super().__init__()
        self.ks = tuple(ks)
        self.k_temperature = k_temperature
        self.rank_temperature = rank_temperature
        self.delta = delta
        self.slope = slope
        self.start = start
        self.offset = offset
        self.check_settings()

    def check_settings(self) -> None:
        """As `RetrievalLoss`."""
        check_ks(self.ks)
        check_above_zero(k_temperature=self.k_temperature)
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
        ks = torch.tensor(self.ks, dtype=embeddings.dtype, device=embeddings.device)

        def missed(ranks: Tensor, valid: Tensor, _: Tensor) -> Tensor:
            return 1 - smooth_recall_at_k(ranks, valid, ks, self.k_temperature, capped=False)

        result = smooth_rank_loss(
            embeddings,
            labels,
            missed,
            self.rank_temperature,
            queries=queries,
            pairs=pairs,
            comparison=self.comparison(),
        )
        self.diagnostics = result.diagnostics(self.ks)
        return result.loss
