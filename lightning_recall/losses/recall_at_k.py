"""Recall@k surrogate: "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR 2022."""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.losses.base import WATCHED_BATCHES, RetrievalLoss, check_above_zero, check_ks
from lightning_recall.losses.gallery import VirtualPairs
from lightning_recall.losses.ranking import smooth_rank_loss


def smooth_recall_at_k(ranks: Tensor, valid: Tensor, ks: Tensor, k_temperature: float, capped: bool = True) -> Tensor:
    """Smooth Recall@k of each query, averaged over the cut-offs (equation 7 of the paper, without its sum over q).

    Args:
        ranks: (Q, P) smooth ranks of each query's positives, 1 being the best.
        valid: (Q, P) bool, False where a query has fewer positives than P.
        ks: (K,) cut-offs.
        k_temperature: width of the cut, tau_1, in ranks.
        capped: whether the positives found count for no more than k.

    Returns:
        (Q,) in [0, 1] if capped.
    """
    hits = torch.sigmoid((ks - ranks[..., None]) / k_temperature) * valid[..., None]  # (Q, P, K)
    possible = torch.minimum(ks, valid.sum(1, keepdim=True))  # (Q, K)
    found = torch.minimum(hits.sum(1), ks) if capped else hits.sum(1)
    return (found / possible).mean(1)


WATCHED_ROWS = 512


class RecallAtKLoss(RetrievalLoss):
    """One minus a smooth Recall@k of the batch: every item queries all the others.

    With s the dot products of the embeddings, P_q the other items of q's class:

        rank(q, x) = 1 + sum over z not in {q, x} of sigmoid((s_qz - s_qx) / rank_temperature)
        recall_k(q) = min(sum over x in P_q of sigmoid((k - rank(q, x)) / k_temperature), k) / min(k, |P_q|)
        loss = 1 - mean over q, mean over k of recall_k(q)

    Source: Patel, Tolias, Matas, CVPR 2022 (arXiv 2108.11179), equations 4 to 7. As both
    temperatures go to 0, the loss goes to one minus the exact recall, the share of min(k, |P_q|) positives found among
    the k nearest, where a positive exactly at rank k counts half, and so does each tie.

    Classes may have any size and items any order. An item alone in its class is no query, but stands in the ranking
    of the others. A k above the number of positives asks for all of them. Work and memory go block by block, in fp32
    at least, also under autocast.

    Args:
        ks: cut-offs, integers from 1; (1, 2, 4, 8, 16) is the published choice.
        k_temperature: tau_1, in ranks, above 0; 1 in the paper.
        rank_temperature: tau_2, in similarity, above 0; 0.01 in the paper. Where the similarities of a new network
            spread less than this, all ranks are N/2 and nothing learns: see `norm="batch"` of `ImageEmbedder`.
        count_query: True lets the query stand in its own ranking, which adds nearly one to every rank. The published
            code does so; the paper's formula does not.

    Shapes: embeddings (N, D), labels (N,) -> scalar.

    Attributes:
        diagnostics: of the last batch, scalars on its device: "recall@k" for each of `ks`, the exact hit rate within
            the batch (what `RecallAtK` measures), and, if there was a gradient to compute, "active_positives", the
            share of the pairs of query and positive whose rank moves the loss. They cost nothing: the similarities
            are at hand.

    Warns once, if one of the first 20 batches has no gradient at all because its similarities are alike.

    Raises:
        ValueError: for empty or non-positive `ks`, a temperature that is not above 0, and batches that
            `smooth_rank_loss` refuses: other shapes, float labels, NaN, no two labels equal.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> loss = RecallAtKLoss(ks=(1, 2))
    >>> round(loss(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    0.5
    >>> round(loss(embeddings, torch.tensor([0, 1, 0, 1])).item(), 4)
    0.5952
    """

    shares_queries = True
    accepts_virtual = True

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
        self.batches_watched = 0
        self.check_settings()

    def check_settings(self) -> None:
        """As `RetrievalLoss`."""
        check_ks(self.ks)
        check_above_zero(k_temperature=self.k_temperature, rank_temperature=self.rank_temperature)

    def compute(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """As `RetrievalLoss`; with `pairs` the loss of `SimilarityMixup()(embeddings, labels)`, in less time."""
        ks = torch.tensor(self.ks, dtype=embeddings.dtype, device=embeddings.device)

        def missed(ranks: Tensor, valid: Tensor, _: Tensor) -> Tensor:
            return 1 - smooth_recall_at_k(ranks, valid, ks, self.k_temperature)

        result = smooth_rank_loss(embeddings, labels, missed, self.rank_temperature, self.count_query, queries, pairs)
        self.diagnostics = result.diagnostics(self.ks)
        if result.loss.requires_grad:
            self.warn_if_gradient_vanishes(embeddings, result.active)
        return result.loss

    def warn_if_gradient_vanishes(self, embeddings: Tensor, active: Tensor) -> None:
        """Warns, once, if one of the first batches has no gradient because all its similarities are alike."""
        if self.batches_watched == WATCHED_BATCHES:
            return
        self.batches_watched += 1
        if active > 0:
            return
        some = F.normalize(embeddings.detach()[:WATCHED_ROWS].double(), dim=1)
        apart = ~torch.eye(len(some), dtype=torch.bool, device=some.device)
        spread = (some @ some.T)[apart].std().item()
        if spread < 2 * self.rank_temperature:
            self.batches_watched = WATCHED_BATCHES
            warnings.warn(
                f"This batch teaches nothing: its similarities spread by {spread:.2g} only, rank_temperature is "
                f"{self.rank_temperature:g}, so that all soft ranks are alike and the gradient vanishes; start from "
                'pretrained weights, put BatchNorm before the L2 normalisation (norm="batch" of ImageEmbedder), or '
                f"lower rank_temperature to {spread / 2:.1g}.",
                stacklevel=6,  # who called the loss
            )

    def extra_repr(self) -> str:
        """The settings, as they are printed."""
        return (
            f"ks={self.ks}, k_temperature={self.k_temperature}, rank_temperature={self.rank_temperature}, "
            f"count_query={self.count_query}"
        )
