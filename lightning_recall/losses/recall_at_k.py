"""Recall@k surrogate: "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR 2022."""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.checks import check_above_zero
from lightning_recall.losses.base import CHECKED_BATCHES, check_ks
from lightning_recall.losses.rank_loss import RankLoss
from lightning_recall.virtual_pairs import VirtualPairs

MAX_CHECKED_ITEMS = 512  # maximum number of items used to estimate the spread of similarities for the warning


def smooth_recall_at_k(ranks: Tensor, valid: Tensor, ks: Tensor, k_temperature: float, capped: bool = True) -> Tensor:
    """Smooth Recall@k of each query, averaged over the cut-offs (equation 7 of the paper, without its sum over q).

    Args:
        ranks: (Q, P) smooth ranks of each query's positives, 1 being the best.
        valid: (Q, P) bool, False where a query has fewer positives than P.
        ks: (K,) cut-offs.
        k_temperature: temperature tau_1 of the sigmoid at k, in ranks.
        capped: whether the number of retrieved positives is clipped at k.

    Returns:
        (Q,) in [0, 1] if capped.
    """
    hits = torch.sigmoid((ks - ranks[..., None]) / k_temperature) * valid[..., None]  # (Q, P, K)
    possible = torch.minimum(ks, valid.sum(1, keepdim=True))  # (Q, K)
    retrieved = torch.minimum(hits.sum(1), ks) if capped else hits.sum(1)
    return (retrieved / possible).mean(1)


def cut_offs_like(ks: Sequence[int], ranks: Tensor) -> Tensor:
    """Cut-offs (K,) with the dtype and device of `ranks`.

    They are created on that device, since copying from the CPU would synchronise.
    """
    return torch.stack([ranks.new_full((), k) for k in ks])


class RecallAtKLoss(RankLoss):
    """One minus a smooth Recall@k of the batch: every item is a query against all others.

    With s the dot products of the embeddings, P_q the other items of q's class:

        rank(q, x) = 1 + sum over z not in {q, x} of sigmoid((s_qz - s_qx) / rank_temperature)
        recall_k(q) = min(sum over x in P_q of sigmoid((k - rank(q, x)) / k_temperature), k) / min(k, |P_q|)
        loss = 1 - mean over q, mean over k of recall_k(q)

    Source: Patel, Tolias, Matas, CVPR 2022 (arXiv 2108.11179), equations 4 to 7. As both temperatures approach 0, the
    loss approaches 1 - exact recall, except that ties, and positives at exactly rank k, count one half each. The exact
    recall is the fraction of min(k, |P_q|) positives that are among the k nearest.

    Classes may have any size and items any order. Items that are alone in their class are not queries, but are in the
    gallery. If k exceeds the number of positives, recall is relative to that number. Computed in blocks of queries, in
    fp32 or fp64, also under autocast.

    Args:
        ks: cut-offs, integers of at least 1; (1, 2, 4, 8, 16) in the paper.
        k_temperature: tau_1, in units of ranks, above 0; 1 in the paper.
        rank_temperature: tau_2, in units of similarity, above 0; 0.01 in the paper. If the similarities of an untrained
            network vary less than this, all ranks are about N/2 and the gradient vanishes: see `norm="batch"` of
            `ImageEmbedder`.
        count_query: if True, the query is included in its own ranking, which adds almost 1 to every rank. The authors'
            code does so; the paper's formula does not.

    Shapes: embeddings (N, D), labels (N,) -> scalar.

    Attributes:
        diagnostics: scalars of the last batch: "recall@k" for each of `ks`, the exact hit rate in the batch (as
            `RecallAtK` measures it); and, with gradients, "active_positives", the fraction of query-positive pairs
            whose rank has a non-zero gradient. They are free, since the similarities are already computed.

    Warns once if one of the first 20 batches has zero gradient because its similarities are nearly equal.

    Raises:
        ValueError: for empty or non-positive `ks`, a temperature that is not above 0, and batches that
            `smooth_rank_loss` rejects: wrong shapes, float labels, NaN, or no two equal labels.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> loss = RecallAtKLoss(ks=(1, 2))
    >>> round(loss(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    0.5
    >>> round(loss(embeddings, torch.tensor([0, 1, 0, 1])).item(), 4)
    0.5952
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 2, 4, 8, 16),
        k_temperature: float = 1.0,
        rank_temperature: float = 0.01,
        count_query: bool = False,
    ) -> None:
        super().__init__()
        self.ks = tuple(ks)
        self.k_temperature = k_temperature
        self.rank_temperature = rank_temperature
        self.count_query = count_query
        self.gradient_checks = 0
        self.check_settings()

    def check_settings(self) -> None:
        """See `RetrievalLoss.check_settings`."""
        check_ks(self.ks)
        check_above_zero(k_temperature=self.k_temperature, rank_temperature=self.rank_temperature)

    def objective(self, ranks: Tensor, valid: Tensor, similarities: Tensor) -> Tensor:
        """One minus the smooth Recall@k (Q,)."""
        return 1 - smooth_recall_at_k(ranks, valid, cut_offs_like(self.ks, ranks), self.k_temperature)

    def compute(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """See `RetrievalLoss.forward`.

        With `pairs`, the value equals the loss on the output of `SimilarityMixup`, and is computed faster.
        """
        loss = super().compute(embeddings, labels, queries, pairs)
        if loss.requires_grad:
            self.warn_if_gradient_vanishes(embeddings, self.diagnostics["active_positives"])
        return loss

    def warn_if_gradient_vanishes(self, embeddings: Tensor, active: Tensor) -> None:
        """Warns once if one of the first batches has zero gradient because its similarities are nearly equal."""
        if self.gradient_checks == CHECKED_BATCHES:
            return
        self.gradient_checks += 1
        if active > 0:
            return
        sample = F.normalize(embeddings.detach()[:MAX_CHECKED_ITEMS].double(), dim=1)
        off_diagonal = ~torch.eye(len(sample), dtype=torch.bool, device=sample.device)
        spread = (sample @ sample.T)[off_diagonal].std().item()
        if spread < 2 * self.rank_temperature:
            self.gradient_checks = CHECKED_BATCHES
            warnings.warn(
                "The gradient of this batch vanishes: the standard deviation of its similarities is "
                f"{spread:.2g}, below 2 * rank_temperature = {2 * self.rank_temperature:g}, so all smooth ranks are "
                "nearly equal. Start from pretrained weights, put BatchNorm before the L2 normalisation "
                f'(norm="batch" of ImageEmbedder), or lower rank_temperature to {spread / 2:.1g}.',
                stacklevel=6,  # points at the caller of the loss
            )

    def extra_repr(self) -> str:
        """Settings shown by repr."""
        return (
            f"ks={self.ks}, k_temperature={self.k_temperature}, rank_temperature={self.rank_temperature}, "
            f"count_query={self.count_query}"
        )
