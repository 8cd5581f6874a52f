"""Proxy-Anchor loss: every proxy is an anchor, compared with all items of the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.checks import check_above_zero
from lightning_recall.losses.proxies import ProxyLoss


class ProxyAnchorLoss(ProxyLoss):
    """Pulls items to the proxy of their class and pushes them from other proxies, weighting hard items most.

    With C the learned proxies, C+ the proxies of classes in the batch, and s the cosines:

        mean over p in C+ of log(1 + sum over x in class(p) of exp(-alpha (s_xp - delta)))
        + mean over all p of log(1 + sum over x not in class(p) of exp(alpha (s_xp + delta)))

    Source: Kim, Kim, Cho, Kwak, "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, equation 4. Combined with a
    ranking loss (`MultipleLosses`), it pulls each class together across the training set. Proxies need a higher
    learning rate than the network: set `loss_lr` in `RetrievalModule`.

    Args:
        num_classes: number of training classes.
        embedding_dim: D.
        delta: margin; 0.1 in the paper.
        alpha: scale, above 0; 32 in the paper.

    Shapes: embeddings (N, D) of unit length, labels (N,) -> scalar.

    Raises:
        ValueError: for settings out of range, and batches with more than `num_classes` classes or an embedding
            dimension other than `embedding_dim`.

    >>> loss = ProxyAnchorLoss(num_classes=2, embedding_dim=2, delta=0.5, alpha=2)
    >>> _ = loss.proxies.weight.data.copy_(torch.eye(2))
    >>> round(loss(torch.eye(2), torch.tensor([5, 7])).item(), 4)  # log(1 + exp(-1)) + log(1 + exp(1))
    1.6265
    """

    def __init__(self, num_classes: int, embedding_dim: int, delta: float = 0.1, alpha: float = 32.0) -> None:
        super().__init__(num_classes, embedding_dim)
        self.delta = delta
        self.alpha = alpha
        self.check_settings()

    def check_settings(self) -> None:
        """See `RetrievalLoss.check_settings`."""
        check_above_zero(alpha=self.alpha)

    def compute(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """See `RetrievalLoss.forward`."""
        similarities, targets = self.proxies(embeddings, labels)  # (N, C), (N,)
        is_target = F.one_hot(targets, similarities.shape[1]).bool()
        positive = (-self.alpha * (similarities - self.delta)).masked_fill(~is_target, -torch.inf)
        negative = (self.alpha * (similarities + self.delta)).masked_fill(is_target, -torch.inf)
        return log1p_sum_exp(positive)[is_target.any(0)].mean() + log1p_sum_exp(negative).mean()


def log1p_sum_exp(exponents: Tensor) -> Tensor:
    """log(1 + sum(exp(x))) over dimension 0 of (N, C); -inf entries are masked out."""
    return torch.cat([exponents, torch.zeros_like(exponents[:1])]).logsumexp(0)
