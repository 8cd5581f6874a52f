"""Contrastive loss with margins on similarities."""

from torch import Tensor

from lightning_recall.losses.base import RetrievalLoss
from lightning_recall.losses.gallery import VirtualPairs
from lightning_recall.losses.pairwise import pairwise_loss


class ContrastiveLoss(RetrievalLoss):
    """Wants positives more similar than one margin and negatives less than another.

        loss = mean over q of (mean over positives of max(positive_margin - s, 0)
                               + mean over the negatives above negative_margin of s - negative_margin)

    Source: Hadsell, Chopra, LeCun, CVPR 2006, on cosines with the margins of Ramzi et al., "Robust and Decomposable
    Average Precision", NeurIPS 2021, where it is the term beside a rank loss that makes the score of a batch one of the
    whole set; there the means are over all pairs of the batch that violate their margin.

    Args:
        positive_margin: from -1 to 1.
        negative_margin: from -1 to 1, below `positive_margin`.

    Shapes: embeddings (N, D) of unit length, labels (N,) -> scalar.

    Attributes:
        diagnostics: of the last batch: the exact "recall@1" within it.

    Raises:
        ValueError: for margins out of range, and batches that `pairwise_loss` refuses.

    >>> import torch
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(ContrastiveLoss(0.9, 0.5)(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    0.29
    """

    shares_queries = True
    accepts_virtual = True

    def __init__(self, positive_margin: float = 0.9, negative_margin: float = 0.6) -> None:
        super().__init__()
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin
        self.check_settings()

    def check_settings(self) -> None:
        """As `RetrievalLoss`."""
        if not -1 <= self.negative_margin < self.positive_margin <= 1:
            raise ValueError(
                "Margins must be from -1 to 1, negative_margin below positive_margin, "
                f"got {self.negative_margin} and {self.positive_margin}."
            )

    def compute(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """As `RetrievalLoss`."""

        def values(similarities: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
            lacking = (self.positive_margin - similarities).clamp(min=0) * positive
            exceeding = (similarities - self.negative_margin).clamp(min=0) * negative
            violated = (exceeding > 0).sum(1).clamp(min=1)
            return lacking.sum(1) / positive.sum(1) + exceeding.sum(1) / violated

        result = pairwise_loss(embeddings, labels, values, queries, pairs)
        self.diagnostics = {"recall@1": result.hits}
        return result.loss
