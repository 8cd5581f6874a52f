"""Several losses as one, and one over more than a batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recall.losses.base import RetrievalLoss, check_batch, check_tensors, declares
from lightning_recall.losses.gallery import VirtualPairs


class MultipleLosses(RetrievalLoss):
    """A weighted sum of losses over the same batch, such as a rank loss and one over proxies.

    Each is given `queries` and `pairs` if it declares the ability (`RetrievalLoss`). Where one mixes virtual items in,
    the others, such as losses over proxies, see the real items only; where none does, virtual items are appended to
    the batch. A loss that does not share queries is computed as a whole by every process.

    Args:
        losses: one or more of (embeddings (N, D), labels (N,)) -> scalar.
        weights: one for each, from 0; None: 1 each.

    Attributes:
        diagnostics: of the last batch: those of all losses, where two share a name the first's, and "loss_0",
            "loss_1", ...

    Raises:
        ValueError: for no loss, or weights that do not fit.

    >>> from lightning_recall.losses import ContrastiveLoss, RecallAtKLoss
    >>> loss = MultipleLosses([RecallAtKLoss(ks=(1, 2)), ContrastiveLoss(0.9, 0.5)], weights=[0.9, 0.1])
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(loss(embeddings, torch.tensor([0, 0, 1, 1])).item(), 4)  # 0.9 * 0.5 + 0.1 * 0.29
    0.479
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = [1.0] * len(losses) if weights is None else list(weights)
        self.check_settings()

    @property
    def shares_queries(self) -> bool:  # type: ignore[override]  # as the losses at the time
        """Whether any of the losses does."""
        return any(declares(loss, "shares_queries") for loss in self.losses)

    @property
    def counts_singletons(self) -> bool:  # type: ignore[override]  # as the losses at the time
        """Whether any of the losses does."""
        return any(declares(loss, "counts_singletons") for loss in self.losses)

    @property
    def accepts_virtual(self) -> bool:  # type: ignore[override]  # as the losses at the time
        """Whether any of the losses does."""
        return any(declares(loss, "accepts_virtual") for loss in self.losses)

    def check_settings(self) -> None:
        """As `RetrievalLoss`."""
        if not len(self.losses) or len(self.weights) != len(self.losses) or not min(self.weights) >= 0:
            raise ValueError(
                f"Give one or more losses and a weight from 0 for each, got {len(self.losses)} and {self.weights}."
            )

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """As `RetrievalLoss`; checks of the batch are those of each loss."""
        self.check_settings()
        check_tensors(embeddings, labels)
        total = embeddings.new_zeros((), dtype=torch.float64 if embeddings.dtype == torch.float64 else torch.float32)
        self.diagnostics = {}
        for number, (loss, weight) in enumerate(zip(self.losses, self.weights, strict=True)):
            options: dict[str, Any] = {}
            if pairs is not None and declares(loss, "accepts_virtual"):
                options["pairs"] = pairs
            if queries is not None and declares(loss, "shares_queries") and (pairs is None or "pairs" in options):
                options["queries"] = queries  # among virtual items too, which a loss without pairs does not have
            value: Tensor = loss(embeddings, labels, **options)
            self.diagnostics = {
                **getattr(loss, "diagnostics", {}),
                **self.diagnostics,
                f"loss_{number}": value.detach(),
            }
            total = total + weight * value
        return total


class CrossBatchMemory(RetrievalLoss):
    """A loss whose queries search the embeddings of the last batches, too.

    Remembered embeddings are as they were when they were computed and get no gradient. The memory is part of the state:
    a resumed training goes on with it. While it fills, and in evaluation mode, there is less of it or none. In
    `RetrievalModule` every process remembers the embeddings of all processes.

    Source: Wang, Zhang, Huang, Scott, "Cross-Batch Memory for Embedding Learning", CVPR 2020.

    Args:
        loss: one that shares queries, such as any rank loss here; in a sum, all of its losses do.
        size: how many embeddings are remembered, from 1.
        embedding_dim: D.
        start_after: how many batches pass before the memory is used, from 0: the first embeddings change fast.

    Attributes:
        diagnostics: those of the loss.

    Raises:
        ValueError: for numbers out of range, a loss that does not share queries, and embeddings of another D.

    >>> from lightning_recall.losses import RecallAtKLoss
    >>> loss = CrossBatchMemory(RecallAtKLoss(ks=(1,)), size=4, embedding_dim=2)
    >>> _ = loss(torch.eye(2), torch.tensor([0, 0]))
    >>> loss.labels.tolist(), int(loss.count)
    ([0, 0, 0, 0], 2)
    """

    shares_queries = True
    counts_singletons = True  # their positives may be remembered
    memory: Tensor
    labels: Tensor
    count: Tensor
    batches: Tensor

    def __init__(self, loss: nn.Module, size: int, embedding_dim: int, start_after: int = 0) -> None:
        super().__init__()
        if size < 1 or embedding_dim < 1:
            raise ValueError(f"size and embedding_dim must be at least 1, got {size} and {embedding_dim}.")
        for part in loss.losses if isinstance(loss, MultipleLosses) else [loss]:
            if not declares(part, "shares_queries"):
                raise ValueError(
                    f"{type(part).__name__} takes no `queries`, so that it cannot tell the batch from the memory: "
                    "add it beside the memory, MultipleLosses([CrossBatchMemory(...), ...])."
                )
        self.loss = loss
        self.start_after = start_after
        self.check_settings()
        self.register_buffer("memory", torch.zeros(size, embedding_dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # ever remembered
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def check_settings(self) -> None:
        """As `RetrievalLoss`."""
        if not self.start_after >= 0:
            raise ValueError(f"start_after must be from 0, got {self.start_after}.")

    @property
    def accepts_virtual(self) -> bool:  # type: ignore[override]  # as the losses at the time
        """Whether the loss does."""
        return declares(self.loss, "accepts_virtual")

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """As `RetrievalLoss`."""
        self.check_settings()
        embeddings, labels = check_batch(embeddings, labels)
        if embeddings.shape[1:] != self.memory.shape[1:]:
            raise ValueError(
                f"embeddings of shape {tuple(embeddings.shape)} do not fit a memory of embedding_dim "
                f"{self.memory.shape[1]}."
            )
        num_real, num_virtual = len(embeddings), 0 if pairs is None else len(pairs[0])
        filled = min(int(self.count), len(self.memory)) if self.training and self.batches >= self.start_after else 0
        rows = torch.arange(num_real + num_virtual, device=embeddings.device)
        rows = rows if queries is None else rows[queries]
        rows = torch.where(rows < num_real, rows, rows + filled)  # virtual items stand behind the memory
        options: dict[str, Any] = {} if pairs is None else {"pairs": pairs}
        everything = torch.cat([embeddings, self.memory[:filled].to(embeddings.dtype)])
        value: Tensor = self.loss(everything, torch.cat([labels, self.labels[:filled]]), queries=rows, **options)
        self.diagnostics = getattr(self.loss, "diagnostics", {})
        if self.training:
            self.remember(embeddings.detach(), labels)
        return value

    def remember(self, embeddings: Tensor, labels: Tensor) -> None:
        """Puts a batch in the place of the oldest."""
        size = len(self.memory)
        places = (self.count + torch.arange(len(labels), device=self.count.device)) % size
        last = slice(max(len(labels) - size, 0), None)  # of a batch larger than the memory
        self.memory[places[last]] = embeddings[last].to(self.memory.dtype)
        self.labels[places[last]] = labels[last]
        self.count += len(labels)
        self.batches += 1
