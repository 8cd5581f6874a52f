"""Learned proxies of classes, the base class of the losses that use them, and the normalised softmax loss."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recall.checks import check_above_zero, check_integer
from lightning_recall.losses.base import RetrievalLoss, check_finite_if_compiling


class Proxies(nn.Module):
    """One learned vector per class. Labels can be any integers; a new label gets the next free index.

    In training mode new labels get the next indices. In evaluation mode, `no_grad` and `inference_mode`, unknown labels
    raise an error and nothing changes.

    Args:
        num_classes: C, number of training classes.
        embedding_dim: D.

    Shapes: embeddings (N, D) in fp32 or fp64, labels (N,) int64 -> cosines (N, C) and class indices (N,).

    Raises:
        ValueError: if num_classes or embedding_dim is below 1, no item is selected, the embedding dimension differs
            from `embedding_dim`, there are more than `num_classes` different labels, or labels are unknown in
            evaluation mode or without gradients.
    """

    known_labels: Tensor
    num_known: Tensor

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        check_integer("num_classes", num_classes, 1)
        check_integer("embedding_dim", embedding_dim, 1)
        self.weight = nn.Parameter(F.normalize(torch.randn(num_classes, embedding_dim), dim=1))
        self.register_buffer("known_labels", torch.zeros(num_classes, dtype=torch.int64))  # label of each proxy
        self.register_buffer("num_known", torch.zeros((), dtype=torch.int64))

    def forward(
        self, embeddings: Tensor, labels: Tensor, queries: slice | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cosines of the selected embeddings to all proxies, and the index of each target proxy.

        Args:
            embeddings: (N, D).
            labels: (N,).
            queries: slice or indices (Q,) of the selected items; None: all.

        Returns:
            Cosines (Q, C) and target indices (Q,).
        """
        check_finite_if_compiling(embeddings)
        if embeddings.shape[1:] != self.weight.shape[1:]:
            raise ValueError(
                f"embeddings have dimension {embeddings.shape[1]}, but the proxies have embedding_dim "
                f"{self.weight.shape[1]}."
            )
        targets = self.label_indices(labels)  # for the whole batch, so that label indices agree on all processes
        if queries is not None:
            embeddings, targets = embeddings[queries], targets[queries]
        if len(embeddings) == 0:
            raise ValueError("The batch is empty, or `queries` selects no items.")
        cosines: Tensor = _MatmulWithoutAutocast.apply(embeddings, F.normalize(self.weight.to(embeddings.dtype), dim=1))
        return cosines, targets

    def label_indices(self, labels: Tensor) -> Tensor:
        """Returns the proxy index of each label (N,).

        In training, new labels get the next indices in ascending order.
        """
        count = int(self.num_known)
        new = torch.unique(labels)
        new = new[~torch.isin(new, self.known_labels[:count])]
        if len(new) and not (self.training and torch.is_grad_enabled()):
            raise ValueError(
                f"{len(new)} labels, such as {int(new[0])}, have no proxy. Only labels seen in training mode get a "
                "proxy. Labels are not added in evaluation mode or without gradients (no_grad). Compute this loss on "
                "training classes only."
            )
        if count + len(new) > len(self.known_labels):
            raise ValueError(
                f"{count + len(new)} different labels, but num_classes is {len(self.known_labels)}: set it to the "
                "number of training classes, which the data module prints when training starts."
            )
        if len(new):
            self.known_labels[count : count + len(new)] = new
            self.num_known += len(new)
        order = self.known_labels[: count + len(new)].argsort()
        return order[torch.searchsorted(self.known_labels[order], labels)]


class _MatmulWithoutAutocast(torch.autograd.Function):
    """Embeddings (N, D) times proxies (C, D): (N, C); backward disables autocast."""

    @staticmethod
    def forward(embeddings: Tensor, proxies: Tensor) -> Tensor:
        return embeddings @ proxies.T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004  # signature required by torch
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        embeddings, proxies = ctx.saved_tensors
        with torch.autocast(embeddings.device.type, enabled=False):
            return gradient @ proxies, gradient.T @ embeddings


class ProxyLoss(RetrievalLoss):
    """Base class of the losses that compare a batch with learned proxies of the classes.

    A subclass implements `compute` with `self.proxies(embeddings, labels, queries)`, which returns the cosines (Q, C)
    and the index of each item's proxy (Q,).

    Args:
        num_classes: C, number of training classes.
        embedding_dim: D.
    """

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.proxies = Proxies(num_classes, embedding_dim)


class NormalizedSoftmaxLoss(ProxyLoss):
    """Cross-entropy over cosine similarities to learned class proxies, divided by a temperature.

    Source: Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning", BMVC 2019 (normalised softmax).
    Combined with a ranking loss, it pulls each class together across the whole training set. Proxies need a higher
    learning rate than the network: set `loss_lr` in `RetrievalModule`.

    Args:
        num_classes: number of training classes.
        embedding_dim: D.
        temperature: above 0; 0.05 in the paper.

    Shapes: embeddings (N, D) of unit length, labels (N,) -> scalar.

    Raises:
        ValueError: for settings out of range, and batches with more classes than `num_classes` or another embedding
            dimension.

    >>> loss = NormalizedSoftmaxLoss(num_classes=2, embedding_dim=2, temperature=0.5)
    >>> _ = loss.proxies.weight.data.copy_(torch.eye(2))
    >>> round(loss(torch.eye(2), torch.tensor([5, 7])).item(), 4)
    0.1269
    """

    shares_queries = True
    counts_singletons = True

    def __init__(self, num_classes: int, embedding_dim: int, temperature: float = 0.05) -> None:
        super().__init__(num_classes, embedding_dim)
        self.temperature = temperature
        self.check_settings()

    def check_settings(self) -> None:
        """See `RetrievalLoss.check_settings`."""
        check_above_zero(temperature=self.temperature)

    def compute(self, embeddings: Tensor, labels: Tensor, queries: slice | Tensor | None = None) -> Tensor:
        """See `RetrievalLoss.forward`; the loss is averaged over the items in `queries`."""
        similarities, targets = self.proxies(embeddings, labels, queries)
        return F.cross_entropy(similarities / self.temperature, targets)
