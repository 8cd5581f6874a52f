"""SupRecall: a Recall@k surrogate whose rank gradient does not vanish."""

from collections.abc import Sequence

from torch import Tensor

from lightning_recall.checks import check_above_zero
from lightning_recall.losses.base import check_ks
from lightning_recall.losses.heaviside import SupHeaviside
from lightning_recall.losses.rank_loss import RankLoss
from lightning_recall.losses.recall_at_k import cut_offs_like, smooth_recall_at_k


class SupRecallAtKLoss(RankLoss):
    """One minus a smooth Recall@k in which positives ranked far too low still have a gradient.

    Like `RecallAtKLoss`, without clipping at k. Ranks are computed with `SupHeaviside`, which is linear for large
    differences: each positive ranked higher adds 1 without gradient, each negative a sigmoid that becomes linear above
    delta. A plain sigmoid saturates when a negative's similarity exceeds the positive's by more than about 0.05; the
    gradient is then almost zero. The cut-off at k is still a sigmoid, so positives more than about 20 ranks beyond the
    largest k get almost no gradient.

        recall_k(q) = sum over x in P_q of sigmoid((k - rank(q, x)) / k_temperature) / min(k, |P_q|)

    Source: Ramzi et al., "Optimization of Rank Losses for Image Retrieval", 2023 (arXiv 2309.08250), SupR@K. Use it
    with a loss that pulls positives together, for example
    `MultipleLosses([SupRecallAtKLoss(), NormalizedSoftmaxLoss(num_classes, embedding_dim)], weights=[0.9, 0.1])`.

    Args:
        ks: cut-offs, integers of at least 1.
        k_temperature: temperature of the sigmoid at k, in units of ranks, above 0.
        rank_temperature: tau, in units of similarity, above 0; 0.01 in the paper.
        delta: similarity difference above which the comparison is linear, above 0.
        slope: slope of the linear part, above 0.
        start: jump of the comparison at a similarity difference of 0, at least 0; 0.5 is the authors' value for SOP.
        offset: value of the linear part at delta. None: the value at which the comparison is continuous.

    Shapes: embeddings (N, D), labels (N,) -> scalar.

    Attributes:
        diagnostics: see `RecallAtKLoss`.

    Raises:
        ValueError: for settings out of range, and batches that `smooth_rank_loss` rejects.

    >>> import torch
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(SupRecallAtKLoss(ks=(1, 2))(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    0.6922
    """

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
        """See `RetrievalLoss.check_settings`."""
        check_ks(self.ks)
        check_above_zero(k_temperature=self.k_temperature)
        self.heaviside()

    def heaviside(self) -> SupHeaviside:
        """Returns the smooth comparison for the current settings."""
        return SupHeaviside(self.rank_temperature, self.delta, self.slope, self.start, self.offset)

    def objective(self, ranks: Tensor, valid: Tensor, similarities: Tensor) -> Tensor:
        """One minus the smooth Recall@k (Q,)."""
        ks = cut_offs_like(self.ks, ranks)
        return 1 - smooth_recall_at_k(ranks, valid, ks, self.k_temperature, capped=False)
