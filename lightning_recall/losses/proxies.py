"""Learned proxies of classes, and the softmax over them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Proxies(nn.Module):
    """One vector for each class, in the order in which their labels are first seen; any integers may be labels.

    Args:
        num_classes: C, how many classes are trained.
        embedding_dim: D.

    Shapes: embeddings (N, D), labels (N,) -> cosines (N, C) and places of the labels (N,).

    Raises:
        ValueError: for numbers below 1, embeddings of another D, and more than `num_classes` different labels.
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
        """Cosines of some rows, or all, to the proxies, in fp32 at least, and which proxy is each row's own."""
        if embeddings.shape[1:] != self.weight.shape[1:]:
            raise ValueError(
                f"embeddings of shape {tuple(embeddings.shape)} do not fit proxies of embedding_dim "
                f"{self.weight.shape[1]}."
            )
        targets = self.places(labels)  # of all rows: every process learns the same order
        rows, targets = (embeddings, targets) if queries is None else (embeddings[queries], targets[queries])
        dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
        with torch.autocast(embeddings.device.type, enabled=False):
            return rows.to(dtype) @ F.normalize(self.weight.to(dtype), dim=1).T, targets

    def places(self, labels: Tensor) -> Tensor:
        """Which proxy is each label's (N,); new labels take the next ones, in ascending order."""
        count = int(self.num_known)
        new = torch.unique(labels)
        new = new[~torch.isin(new, self.known[:count])]
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


class ProxySoftmaxLoss(nn.Module):
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

    >>> loss = ProxySoftmaxLoss(num_classes=2, embedding_dim=2, temperature=0.5)
    >>> _ = loss.proxies.weight.data.copy_(torch.eye(2))
    >>> round(loss(torch.eye(2), torch.tensor([5, 7])).item(), 4)
    0.1269
    """

    def __init__(self, num_classes: int, embedding_dim: int, temperature: float = 0.05) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}.")
        self.proxies = Proxies(num_classes, embedding_dim)
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor, queries: slice | Tensor | None = None) -> Tensor:
        """Loss of a batch: embeddings (N, D), labels (N,) -> scalar; `queries`: rows that count, None: all."""
        similarities, targets = self.proxies(embeddings, labels, queries)
        return F.cross_entropy(similarities / self.temperature, targets)
