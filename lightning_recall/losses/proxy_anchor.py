"""Proxy-Anchor loss: every proxy is an anchor that all items of a batch are compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.losses.base import RetrievalLoss, check_above_zero
from lightning_recall.losses.proxies import Proxies


class ProxyAnchorLoss(RetrievalLoss):
    """Draws items to the proxy of their class and away from those of the others, the hardest ones most.

    With C learned proxies p, C+ those of the classes in the batch, s the cosines:

        mean over p in C+ of log(1 + sum over x of p's class of exp(-alpha (s_xp - delta)))
        + mean over all p of log(1 + sum over x of other classes of exp(alpha (s_xp + delta)))

    Source: Kim, Kim, Cho, Kwak, "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, equation 4. Beside a rank loss
    (`MultipleLosses`) it draws each class together over the whole training set. Proxies learn faster than the network:
    give them a `loss_lr` of their own in `RetrievalModule`.

    Args:
        num_classes: how many classes are trained.
        embedding_dim: D.
        delta: margin; 0.1 in the paper.
        alpha: scale, above 0; 32 in the paper.

    Shapes: embeddings (N, D) of unit length, labels (N,) -> scalar.

    Raises:
        ValueError: for settings out of range, and batches with more classes than `num_classes` or of another D.

    >>> loss = ProxyAnchorLoss(num_classes=2, embedding_dim=2, delta=0.5, alpha=2)
    >>> _ = loss.proxies.weight.data.copy_(torch.eye(2))
    >>> round(loss(torch.eye(2), torch.tensor([5, 7])).item(), 4)  # log(1 + exp(-1)) + log(1 + exp(1))
    1.6265
    """

    def __init__(self, num_classes: int, embedding_dim: int, delta: float = 0.1, alpha: float = 32.0) -> None:
        super().__init__()
        self.proxies = Proxies(num_classes, embedding_dim)
        self.delta = delta
        self.alpha = alpha
        self.check_settings()

    def check_settings(self) -> None:
        """As `RetrievalLoss`."""
        check_above_zero(alpha=self.alpha)

    def compute(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """As `RetrievalLoss`."""
        similarities, targets = self.proxies(embeddings, labels)  # (N, C), (N,)
        own = F.one_hot(targets, similarities.shape[1]).bool()
        near = (-self.alpha * (similarities - self.delta)).masked_fill(~own, -torch.inf)
        far = (self.alpha * (similarities + self.delta)).masked_fill(own, -torch.inf)
        return log_one_plus(near)[own.any(0)].mean() + log_one_plus(far).mean()


def log_one_plus(exponents: Tensor) -> Tensor:
    """log(1 + sum of exp) of each column of (N, C), of those that are not -inf."""
    return torch.cat([exponents, torch.zeros_like(exponents[:1])]).logsumexp(0)
