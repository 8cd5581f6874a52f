"""Combines losses: a weighted sum, and a cross-batch memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recall.checks import check_integer, check_tensors
from lightning_recall.losses.base import RetrievalLoss, check_batch, has_flag
from lightning_recall.tensors import at_least_float32
from lightning_recall.virtual_pairs import VirtualPairs


class MultipleLosses(RetrievalLoss):
    """A weighted sum of losses over the same batch, such as a ranking loss and a proxy loss.

    Passes `queries` and `pairs` to the losses that support them (see `RetrievalLoss`). If any loss supports `pairs`,
    the other losses see only the real items. If none does, virtual items are appended to the batch. A loss that does
    not support `queries` is computed in full by every process.

    Args:
        losses: one or more losses with the signature (embeddings (N, D), labels (N,)) -> scalar.
        weights: one non-negative weight per loss. None: all 1.

    Attributes:
        diagnostics: the diagnostics of all losses in the last batch (the first loss wins where names collide), and
            "loss_0", "loss_1", ....

    Raises:
        ValueError: if there is no loss, or the weights do not match the losses.

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
    def shares_queries(self) -> bool:  # type: ignore[override]  # computed, since the losses may change
        """Whether any of the losses supports `queries`."""
        return any(has_flag(loss, "shares_queries") for loss in self.losses)

    @property
    def counts_singletons(self) -> bool:  # type: ignore[override]  # computed, since the losses may change
        """Whether an item that is alone in its class is a query of any of the losses."""
        return any(has_flag(loss, "counts_singletons") for loss in self.losses)

    @property
    def accepts_virtual(self) -> bool:  # type: ignore[override]  # computed, since the losses may change
        """Whether any of the losses supports `pairs`."""
        return any(has_flag(loss, "accepts_virtual") for loss in self.losses)

    def check_settings(self) -> None:
        """See `RetrievalLoss.check_settings`."""
        if not len(self.losses) or len(self.weights) != len(self.losses) or not min(self.weights) >= 0:
            raise ValueError(
                "Pass one or more losses and a non-negative weight for each, "
                f"got {len(self.losses)} losses and weights {self.weights}."
            )

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """See `RetrievalLoss.forward`; each loss checks the batch itself."""
        self.check_settings()
        check_tensors(embeddings=embeddings, labels=labels)
        total = at_least_float32(embeddings.new_zeros(()))
        self.diagnostics = {}
        for number, (loss, weight) in enumerate(zip(self.losses, self.weights, strict=True)):
            options: dict[str, Any] = {}
            if pairs is not None and has_flag(loss, "accepts_virtual"):
                options["pairs"] = pairs
            if queries is not None and has_flag(loss, "shares_queries") and (pairs is None or "pairs" in options):
                # queries may contain indices of virtual items, which are invalid for losses without `pairs`
                options["queries"] = queries
            value: Tensor = loss(embeddings, labels, **options)
            self.diagnostics = {
                **getattr(loss, "diagnostics", {}),
                **self.diagnostics,
                f"loss_{number}": value.detach(),
            }
            total = total + weight * value
        return total


class CrossBatchMemory(RetrievalLoss):
    """Applies a loss to a gallery that also contains the embeddings of recent batches.

    Stored embeddings are not updated and get no gradient. The memory is in the state_dict and is restored on resume.
    While the memory fills, only its filled part is used; in evaluation mode it is not used. In `RetrievalModule` every
    process stores the embeddings of all processes.

    Source: Wang, Zhang, Huang, Scott, "Cross-Batch Memory for Embedding Learning", CVPR 2020.

    Args:
        loss: a loss that supports `queries`, such as any ranking loss of this package. In a `MultipleLosses`, every
            loss must support `queries`.
        size: number of stored embeddings, at least 1.
        embedding_dim: D.
        start_after: number of batches before the memory is used, at least 0. Embeddings change fast at the start of
            training.

    Attributes:
        diagnostics: the diagnostics of the loss.

    Raises:
        ValueError: if a number is out of range, the loss does not support `queries`, or the embedding dimension does
            not match.

    >>> from lightning_recall.losses import RecallAtKLoss
    >>> loss = CrossBatchMemory(RecallAtKLoss(ks=(1,)), size=4, embedding_dim=2)
    >>> _ = loss(torch.eye(2), torch.tensor([0, 0]))
    >>> loss.labels.tolist(), int(loss.num_stored)
    ([0, 0, 0, 0], 2)
    """

    shares_queries = True
    counts_singletons = True  # positives of singletons may be in the memory
    memory: Tensor
    labels: Tensor
    num_stored: Tensor
    num_batches: Tensor

    def __init__(self, loss: nn.Module, size: int, embedding_dim: int, start_after: int = 0) -> None:
        super().__init__()
        check_integer("size", size, 1)
        check_integer("embedding_dim", embedding_dim, 1)
        for part in loss.losses if isinstance(loss, MultipleLosses) else [loss]:
            if not has_flag(part, "shares_queries"):
                raise ValueError(
                    f"{type(part).__name__} does not support `queries`, so it would also use the stored embeddings "
                    "as queries. Add it outside the memory: MultipleLosses([CrossBatchMemory(...), ...])."
                )
        self.loss = loss
        self.start_after = start_after
        self.check_settings()
        self.register_buffer("memory", torch.zeros(size, embedding_dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("num_stored", torch.zeros((), dtype=torch.int64))  # includes overwritten embeddings
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def check_settings(self) -> None:
        """See `RetrievalLoss.check_settings`."""
        if not self.start_after >= 0:
            raise ValueError(f"start_after must be at least 0, got {self.start_after}.")

    @property
    def accepts_virtual(self) -> bool:  # type: ignore[override]  # computed, since the loss may change
        """Whether the wrapped loss supports `pairs`."""
        return has_flag(self.loss, "accepts_virtual")

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """See `RetrievalLoss.forward`; the loss warns about embeddings that are not normalised."""
        self.check_settings()
        embeddings, labels = check_batch(embeddings, labels)
        if embeddings.shape[1:] != self.memory.shape[1:]:
            raise ValueError(
                f"embeddings have dimension {embeddings.shape[1]}, but the memory has embedding_dim "
                f"{self.memory.shape[1]}."
            )
        num_real, num_virtual = len(embeddings), 0 if pairs is None else len(pairs[0])
        is_used = self.training and self.num_batches >= self.start_after
        num_filled = min(int(self.num_stored), len(self.memory)) if is_used else 0
        indices = torch.arange(num_real + num_virtual, device=embeddings.device)
        indices = indices if queries is None else indices[queries]
        indices = torch.where(indices < num_real, indices, indices + num_filled)  # virtual items follow the memory
        options: dict[str, Any] = {} if pairs is None else {"pairs": pairs}
        gallery = torch.cat([embeddings, self.memory[:num_filled].to(embeddings.dtype)])
        gallery_labels = torch.cat([labels, self.labels[:num_filled]])
        value: Tensor = self.loss(gallery, gallery_labels, queries=indices, **options)
        self.diagnostics = getattr(self.loss, "diagnostics", {})
        if self.training:
            self.enqueue(embeddings.detach(), labels)
        return value

    def enqueue(self, embeddings: Tensor, labels: Tensor) -> None:
        """Overwrites the oldest embeddings with a batch."""
        size = len(self.memory)
        slots = (self.num_stored + torch.arange(len(labels), device=self.num_stored.device)) % size
        last = slice(max(len(labels) - size, 0), None)  # if the batch is larger than the memory, keep only its end
        self.memory[slots[last]] = embeddings[last].to(self.memory.dtype)
        self.labels[slots[last]] = labels[last]
        self.num_stored += len(labels)
        self.num_batches += 1
