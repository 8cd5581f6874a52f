"""Contrastive loss with margins on similarities."""

from torch import Tensor

from lightning_recall.losses.pairwise import PairwiseLoss
from lightning_recall.losses.part_losses import ClosedForm
from lightning_recall.losses.positives import QueryPositives


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

    def closed_form(
        self, similarities: Tensor, positive_similarities: Tensor, part: QueryPositives, with_gradient: bool
    ) -> ClosedForm:
        """Mean margin violation of the positives plus that of the violating negatives (q,). See `PairwiseLoss`."""
        num_positives = part.valid.sum(1)
        positive_violations = (self.positive_margin - positive_similarities).clamp(min=0) * part.valid
        negative_violations = similarities.sub_(self.negative_margin).clamp_(min=0)
        negative_sum = negative_violations.sum(1)
        violates = negative_violations.sign_()
        num_violating = violates.sum(1)
        inverse = 1 / num_violating.clamp(min=1)
        values = positive_violations.sum(1) / num_positives + negative_sum * inverse
        violates.mul_(inverse[:, None])
        return ClosedForm(values, -positive_violations.sign() / num_positives[:, None], num_violating > 0)
