"""Contrastive loss with margins on similarities."""

from torch import Tensor

from lightning_recall.losses.pairwise import PairwiseLoss


class ContrastiveLoss(PairwiseLoss):
    """Penalises positives below one similarity margin and negatives above another.

        loss = mean over q of (mean over positives of max(positive_margin - s, 0)
                               + mean over the negatives above negative_margin of s - negative_margin)

    Source: Hadsell, Chopra, LeCun, CVPR 2006. Uses cosine similarities and the margins of Ramzi et al., "Robust and
    Decomposable Average Precision", NeurIPS 2021. Ramzi et al. add it to a ranking loss, so that the score within a
    batch approximates the score on the whole dataset. They average over all pairs of the batch that violate their
    margin.

    Args:
        positive_margin: from -1 to 1.
        negative_margin: from -1 to 1, below `positive_margin`.

    Shapes: embeddings (N, D) of unit length, labels (N,) -> scalar.

    Attributes:
        diagnostics: exact "recall@1" within the last batch.

    Raises:
        ValueError: for margins out of range, and batches that `pairwise_loss` rejects.

    >>> import torch
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(ContrastiveLoss(0.9, 0.5)(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    0.29
    """

    def __init__(self, positive_margin: float = 0.9, negative_margin: float = 0.6) -> None:
        super().__init__()
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin
        self.check_settings()

    def check_settings(self) -> None:
        """See `RetrievalLoss.check_settings`."""
        if not -1 <= self.negative_margin < self.positive_margin <= 1:
            raise ValueError(
                "Margins must be from -1 to 1, negative_margin below positive_margin, "
                f"got {self.negative_margin} and {self.positive_margin}."
            )

    def per_query_loss(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Mean margin violation of the positives plus that of the violating negatives (q,)."""
        positive_violations = (self.positive_margin - similarities).clamp(min=0) * positive
        negative_violations = (similarities - self.negative_margin).clamp(min=0) * negative
        num_violating = (negative_violations > 0).sum(1).clamp(min=1)
        return positive_violations.sum(1) / positive.sum(1) + negative_violations.sum(1) / num_violating
