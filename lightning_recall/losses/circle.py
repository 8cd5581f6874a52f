"""Circle loss: "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.losses.closed_form import forbid_double_backward
from lightning_recall.losses.pairwise import PairwiseLoss
from lightning_recall.losses.part_losses import MIN_EXPONENT, ClosedForm, exclude_class
from lightning_recall.losses.positives import QueryPositives
from lightning_recall.losses.proxies import ProxyLoss


class CircleLoss(PairwiseLoss):
    """Pulls positives to similarity 1 and negatives to 0, with larger weights for pairs further from the optimum.

    With m the margin, gamma the scale, s_p the similarities of an anchor to its positives and s_n to its negatives:

        a_p = max(1 + m - s_p, 0), a_n = max(s_n + m, 0), both detached
        loss = mean over anchors of log(1 + sum over n of exp(gamma a_n (s_n - m))
                                          * sum over p of exp(-gamma a_p (s_p - (1 - m))))

    Source: Sun et al., CVPR 2020 (arXiv 2002.10857). Anchors without positives or negatives are ignored;
    pytorch-metric-learning averages over anchors with non-zero loss instead. The loss is of the order of gamma, so tune
    the learning rate and gradient clipping for it. Computed in blocks of queries, in fp32 or fp64.

    Args:
        m: margin, above 0 and below 1; in the paper 0.4 for fine-grained retrieval, 0.25 for faces and persons.
        gamma: scale, above 0; in the paper 80 for fine-grained retrieval, 256 for faces, 128 for persons.

    Shapes: embeddings (N, D) of unit length, labels (N,) -> scalar.

    Attributes:
        diagnostics: exact "recall@1" within the last batch.

    Raises:
        ValueError: for settings out of range, and batches that `pairwise_loss` rejects.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(CircleLoss(m=0.25, gamma=8)(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)
    4.5298
    """

    def __init__(self, m: float = 0.4, gamma: float = 80.0) -> None:
        super().__init__()
        self.m = m
        self.gamma = gamma
        self.check_settings()

    def check_settings(self) -> None:
        """See `RetrievalLoss.check_settings`."""
        check_circle(self.m, self.gamma)

    def closed_form(
        self, similarities: Tensor, positive_similarities: Tensor, part: QueryPositives, with_gradient: bool
    ) -> ClosedForm:
        """Circle loss of each anchor (q,), see `PairwiseLoss.closed_form`.

        With s clamped to at least -m, the logit of a negative is gamma (s^2 - m^2), since its weight is s + m.
        """
        weights = (1 + self.m - positive_similarities).clamp(min=0) * -self.gamma
        logits = weights * (positive_similarities - (1 - self.m))
        logits.masked_fill_(~part.valid, -torch.inf)
        positive_sum = logits.logsumexp(1)

        clamped = similarities.clamp_(min=-self.m)  # (q, N)
        terms = clamped.square()
        exclude_class(terms, part, -torch.inf)
        largest = terms.amax(1, keepdim=True)
        F.threshold(terms.sub_(largest).mul_(self.gamma), MIN_EXPONENT, -torch.inf, inplace=True)
        total = terms.exp_().sum(1)
        exponent = positive_sum + self.gamma * (largest.squeeze(1) - self.m**2) + total.log()
        values = torch.logaddexp(exponent, torch.zeros_like(exponent))
        derivative = exponent.sigmoid()[:, None]
        if with_gradient:
            clamped.add_(self.m).mul_(terms).mul_(self.gamma * derivative / total[:, None])
        return ClosedForm(values, derivative * (logits - positive_sum[:, None]).exp() * weights)


class CircleProxyLoss(ProxyLoss):
    """Circle loss at class level: every class has a learned proxy, which is the only positive of its items.

    Cross-entropy over classes. The logit is gamma a_n (s_n - m) for other classes and gamma a_p (s_p - (1 - m)) for
    the item's own class, with s the cosines to the proxies. Source: see `CircleLoss`.

    Args:
        num_classes: number of training classes.
        embedding_dim: D.
        m: margin, above 0 and below 1.
        gamma: scale, above 0.

    Shapes: embeddings (N, D) of unit length, labels (N,) -> scalar.

    Raises:
        ValueError: for settings out of range, and batches with more classes than `num_classes` or an embedding
            dimension other than `embedding_dim`.

    >>> loss = CircleProxyLoss(num_classes=2, embedding_dim=2, m=0.25, gamma=8)
    >>> _ = loss.proxies.weight.data.copy_(torch.eye(2))
    >>> round(loss(torch.eye(2), torch.tensor([5, 7])).item(), 4)
    0.3133
    """

    shares_queries = True
    counts_singletons = True

    def __init__(self, num_classes: int, embedding_dim: int, m: float = 0.25, gamma: float = 256.0) -> None:
        super().__init__(num_classes, embedding_dim)
        self.m = m
        self.gamma = gamma
        self.check_settings()

    def check_settings(self) -> None:
        """See `RetrievalLoss.check_settings`."""
        check_circle(self.m, self.gamma)

    def compute(self, embeddings: Tensor, labels: Tensor, queries: slice | Tensor | None = None) -> Tensor:
        """See `RetrievalLoss.forward`; the loss is averaged over the items in `queries`."""
        similarities, targets = self.proxies(embeddings, labels, queries)
        is_target = F.one_hot(targets, similarities.shape[1]).bool()
        logits = circle_logits(similarities, is_target, self.m, self.gamma)
        return F.cross_entropy(torch.where(is_target, -logits, logits), targets)


def circle_logits(similarities: Tensor, positive: Tensor, m: float, gamma: float) -> Tensor:
    """Circle-loss logits: -gamma a_p (s - (1 - m)) of positives, gamma a_n (s - m) of all other items.

    The weights a_p and a_n are detached.
    """
    detached = similarities.detach()
    positive_logits = weighted_logits(-(1 + m - detached).clamp(min=0), similarities, 1 - m)
    negative_logits = weighted_logits((detached + m).clamp(min=0), similarities, m)
    return gamma * torch.where(positive, positive_logits, negative_logits)


def weighted_logits(weights: Tensor, similarities: Tensor, shift: float) -> Tensor:
    """Returns weights * (similarities - shift), with weights that depend on the similarities but count as constants.

    The gradient equals the weights; `forbid_double_backward` raises an error if it is differentiated again.
    """
    logits: Tensor = _WeightedLogits.apply(weights, similarities, shift)
    return logits


class _WeightedLogits(torch.autograd.Function):
    """Computes weights * (similarities - shift); its gradient is `weights`."""

    @staticmethod
    def forward(weights: Tensor, similarities: Tensor, shift: float) -> Tensor:
        return weights * (similarities - shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:  # noqa: ARG004  # signature required by torch
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, similarities = ctx.saved_tensors
        return None, gradient * forbid_double_backward(weights, similarities), None


def check_circle(m: float, gamma: float) -> None:
    """Raises ValueError for a margin or a scale out of range."""
    if not (0 < m < 1 and gamma > 0):
        raise ValueError(f"m must be above 0 and below 1, gamma above 0, got {m} and {gamma}.")
