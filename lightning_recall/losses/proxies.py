"""Learned proxies of classes, and the softmax over them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recall.losses.base import RetrievalLoss, check_above_zero, check_finite


class Proxies(nn.Module):
    """One vector for each class, in the order in which their labels are first seen; any integers may be labels.

    Args:
        num_classes: C, how many classes are trained.
        embedding_dim: D.

    In training mode new labels take the next places. In evaluation mode, under `no_grad` and in `inference_mode` they
    are an error, and nothing changes.

    Shapes: embeddings (N, D) in fp32 or fp64, labels (N,) int64 -> cosines (N, C) and places of the labels (N,).

    Raises:
        ValueError: for numbers below 1, no row, rows that are not finite or of another D, more than `num_classes`
            different labels, and for labels without a proxy where nothing is trained.
    """

    known: Tensor
    num_known: Tensor

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        if num_classes < 1 or embedding_dim < 1:
            raise ValueError(
                f"num_classes and embedding_dim must be at least 1, got {num_classes} and {embedding_dim}."
            )
        self.weight = nn.Parameter(F.normalize(torch.randn(num_classes, embedding_dim), dim=1))
        self.register_buffer("known", torch.zeros(num_classes, dtype=torch.int64))  # labels, by place
        self.register_buffer("num_known", torch.zeros((), dtype=torch.int64))

    def forward(
        self, embeddings: Tensor, labels: Tensor, queries: slice | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cosines of some rows, or all, to the proxies, and which proxy is each row's own."""
        if embeddings.shape[1:] != self.weight.shape[1:]:
            raise ValueError(
                f"embeddings of shape {tuple(embeddings.shape)} do not fit proxies of embedding_dim "
                f"{self.weight.shape[1]}."
            )
        targets = self.places(labels)  # of all rows: every process learns the same order
        rows, targets = (embeddings, targets) if queries is None else (embeddings[queries], targets[queries])
        if len(rows) == 0:
            raise ValueError("The batch holds no row that counts.")
        check_finite(embeddings)
        cosines: Tensor = _Products.apply(rows, F.normalize(self.weight.to(rows.dtype), dim=1))
        return cosines, targets

    def places(self, labels: Tensor) -> Tensor:
        """Which proxy is each label's (N,); in training new labels take the next ones, in ascending order."""
        count = int(self.num_known)
        new = torch.unique(labels)
        new = new[~torch.isin(new, self.known[:count])]
        if len(new) and not (self.training and torch.is_grad_enabled()):
            raise ValueError(
                f"{len(new)} labels have no proxy, such as {int(new[0])}: in evaluation mode only the labels of the "
                "training have one, and without gradients (no_grad) too. Compute this loss on training classes only."
            )
        if count + len(new) > len(self.known):
            raise ValueError(
                f"{count + len(new)} different labels, but num_classes is {len(self.known)}: set it to the number of "
                "training classes, which the data module tells when the training starts."
            )
        if len(new):
            self.known[count : count + len(new)] = new
            self.num_known += len(new)
        order = self.known[: count + len(new)].argsort()
        return order[torch.searchsorted(self.known[order], labels)]


class _Products(torch.autograd.Function):
    """Rows (N, D) times proxies (C, D): (N, C); autocast does not reach the products of backward."""

    @staticmethod
    def forward(rows: Tensor, proxies: Tensor) -> Tensor:
        return rows @ proxies.T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004  # torch's
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        rows, proxies = ctx.saved_tensors
        with torch.autocast(rows.device.type, enabled=False):
            return gradient @ proxies, gradient.T @ rows


class NormalizedSoftmaxLoss(RetrievalLoss):
    """Cross entropy of the cosines to learned proxies of all classes, over a temperature.

    Source: Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning", BMVC 2019 (normalised softmax).
    Beside a rank loss it draws each class together over the whole training set, not only the batch. Proxies learn
    faster than the network: give them a `loss_lr` of their own in `RetrievalModule`.

    Args:
        num_classes: how many classes are trained.
        embedding_dim: D.
        temperature: above 0; 0.05 in the paper.

    Shapes: embeddings (N, D) of unit length, labels (N,) -> scalar.

    Raises:
        ValueError: for settings out of range, and batches with more classes than `num_classes` or of another D.

    >>> loss = NormalizedSoftmaxLoss(num_classes=2, embedding_dim=2, temperature=0.5)
    >>> _ = loss.proxies.weight.data.copy_(torch.eye(2))
    >>> round(loss(torch.eye(2), torch.tensor([5, 7])).item(), 4)
    0.1269
    """

    shares_queries = True
    counts_singletons = True

    def __init__(self, num_classes: int, embedding_dim: int, temperature: float = 0.05) -> None:
        super().__init__()
        self.proxies = Proxies(num_classes, embedding_dim)
        self.temperature = temperature
        self.check_settings()

    def check_settings(self) -> None:
        """As `RetrievalLoss`."""
        check_above_zero(temperature=self.temperature)

    def compute(self, embeddings: Tensor, labels: Tensor, queries: slice | Tensor | None = None) -> Tensor:
        """As `RetrievalLoss`; `queries`: rows that count."""
        similarities, targets = self.proxies(embeddings, labels, queries)
        return F.cross_entropy(similarities / self.temperature, targets)
