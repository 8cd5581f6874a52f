"""Circle loss: "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.losses.base import RetrievalLoss
from lightning_recall.losses.closed_form import first_order
from lightning_recall.losses.gallery import VirtualPairs
from lightning_recall.losses.pairwise import pairwise_loss
from lightning_recall.losses.proxies import Proxies


class CircleLoss(RetrievalLoss):
    """Pulls each anchor's positives to similarity 1 and pushes its negatives to 0, the further off the harder.

    With m the margin, gamma the scale, s_p the similarities of an anchor to its positives and s_n to its negatives:

        a_p = max(1 + m - s_p, 0), a_n = max(s_n + m, 0), both taken as constants by the gradient
        loss = mean over anchors of log(1 + sum over n of exp(gamma a_n (s_n - m))
                                          * sum over p of exp(-gamma a_p (s_p - (1 - m))))

    Source: Sun et al., CVPR 2020 (arXiv 2002.10857). An anchor without a positive or a negative does not count;
    pytorch-metric-learning divides by the anchors whose loss is not zero instead. The value is about gamma: learning
    rates and clipping of other losses do not carry over. Block by block, in fp32 at least.

    Args:
        m: margin, above 0 and below 1; in the paper 0.4 for fine-grained retrieval, 0.25 for faces and persons.
        gamma: scale, above 0; there 80, and 256 or 128.

    Shapes: embeddings (N, D) of unit length, labels (N,) -> scalar.

    Attributes:
        diagnostics: of the last batch: the exact "recall@1" within it.

    Raises:
        ValueError: for settings out of range, and batches that `pairwise_loss` refuses.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(CircleLoss(m=0.25, gamma=8)(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    4.5298
    """

    shares_queries = True
    accepts_virtual = True

    def __init__(self, m: float = 0.4, gamma: float = 80.0) -> None:
        super().__init__()
        self.m = m
        self.gamma = gamma
        self.check_settings()

    def check_settings(self) -> None:
        """As `RetrievalLoss`."""
        check_circle(self.m, self.gamma)

    def compute(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """As `RetrievalLoss`."""

        def values(similarities: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
            logits = circle_logits(similarities, positive, self.m, self.gamma)
            sums = [logits.masked_fill(~mask, -torch.inf).logsumexp(1) for mask in (positive, negative)]
            exponent = sums[0] + sums[1]
            return torch.logaddexp(exponent, torch.zeros_like(exponent))

        result = pairwise_loss(embeddings, labels, values, queries, pairs)
        self.diagnostics = {"recall@1": result.hits}
        return result.loss


class CircleProxyLoss(RetrievalLoss):
    """Circle loss at the level of classes: each has a learned proxy, the only positive of its items.

    The cross entropy of the logits gamma a_n (s_n - m) of the other classes and -gamma a_p (s_p - (1 - m)), negated, of
    an item's own, with s the cosines to the proxies. Source: as of `CircleLoss`.

    Args:
        num_classes: how many classes are trained.
        embedding_dim: D.
        m: margin, above 0 and below 1.
        gamma: scale, above 0.

    Shapes: embeddings (N, D) of unit length, labels (N,) -> scalar.

    Raises:
        ValueError: for settings out of range, and batches with more classes than `num_classes` or of another D.

    >>> loss = CircleProxyLoss(num_classes=2, embedding_dim=2, m=0.25, gamma=8)
    >>> _ = loss.proxies.weight.data.copy_(torch.eye(2))
    >>> round(loss(torch.eye(2), torch.tensor([5, 7])).item(), 4)
    0.3133
    """

    shares_queries = True
    counts_singletons = True

    def __init__(self, num_classes: int, embedding_dim: int, m: float = 0.25, gamma: float = 256.0) -> None:
        super().__init__()
        self.proxies = Proxies(num_classes, embedding_dim)
        self.m = m
        self.gamma = gamma
        self.check_settings()

    def check_settings(self) -> None:
        """As `RetrievalLoss`."""
        check_circle(self.m, self.gamma)

    def compute(self, embeddings: Tensor, labels: Tensor, queries: slice | Tensor | None = None) -> Tensor:
        """As `RetrievalLoss`; `queries`: rows that count."""
        similarities, targets = self.proxies(embeddings, labels, queries)
        own = F.one_hot(targets, similarities.shape[1]).bool()
        logits = circle_logits(similarities, own, self.m, self.gamma)
        return F.cross_entropy(torch.where(own, -logits, logits), targets)


def circle_logits(similarities: Tensor, positive: Tensor, m: float, gamma: float) -> Tensor:
    """Exponents: -gamma a_p (s - (1 - m)) of positives, gamma a_n (s - m) of all others, with constant a."""
    constant = similarities.detach()
    of_positive = weighted(-(1 + m - constant).clamp(min=0), similarities, 1 - m)
    of_negative = weighted((constant + m).clamp(min=0), similarities, m)
    return gamma * torch.where(positive, of_positive, of_negative)


def weighted(weights: Tensor, similarities: Tensor, shift: float) -> Tensor:
    """Products weights * (similarities - shift), whose weights depend on the similarities but are constants.

    The gradient, the weights, has no derivative by the similarities: `first_order` says so.
    """
    product: Tensor = _Weighted.apply(weights, similarities, shift)
    return product


class _Weighted(torch.autograd.Function):
    """The product, and the weights as its derivative."""

    @staticmethod
    def forward(weights: Tensor, similarities: Tensor, shift: float) -> Tensor:
        return weights * (similarities - shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:  # noqa: ARG004  # torch's
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, similarities = ctx.saved_tensors
        return None, gradient * first_order(weights, similarities), None


def check_circle(m: float, gamma: float) -> None:
    """Raises ValueError for a margin or a scale out of range."""
    if not (0 < m < 1 and gamma > 0):
        raise ValueError(f"m must be above 0 and below 1, gamma above 0, got {m} and {gamma}.")
