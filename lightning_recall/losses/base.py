"""What all losses share: declared abilities, checks of the batch, fp32 under autocast."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recall.losses.gallery import VirtualPairs

WATCHED_BATCHES = 20  # later batches are not looked at: reading a value makes the processor wait for the device
LONGEST = 1.05  # of a row that counts as unit length: bf16 rounds the length by 0.4 percent


class RetrievalLoss(nn.Module):
    """Base class of the losses: (embeddings (N, D), labels (N,)) -> scalar.

    A subclass implements `compute(embeddings, labels)`, with the arguments `queries` and `pairs` if it declares the
    abilities. `compute` gets checked embeddings in fp32 or fp64 and int64 labels, and runs without autocast. It may
    set `diagnostics`. A loss that overrides `forward` instead does all this itself.

    The abilities are class attributes. Other modules may set them too; without them a loss is given neither argument.

    Attributes:
        shares_queries: whether `queries`, rows as a slice or an index vector, restricts the queries, so that processes
            can share the work: the means of disjoint parts, weighted by their numbers of queries, add up to the whole.
        counts_singletons: whether a row that is alone in its class counts as a query.
        accepts_virtual: whether `pairs`, what `SimilarityMixup.draw(labels)` gives, adds M virtual items as rows N,
            N + 1, ...; else the embeddings of virtual items are appended to the batch.
        diagnostics: scalars of the last batch, such as "recall@1"; `RetrievalModule` logs them.

    Warns once if a row of the first 20 batches is longer than 1.05: the settings of the losses, temperatures and
    margins, are meant for cosines, and the metrics normalise. Where dot products are intended, filter the warning.

    >>> class NegativeCosine(RetrievalLoss):
    ...     def compute(self, embeddings, labels):
    ...         return -(embeddings @ embeddings.T)[labels[:, None] == labels].mean()
    >>> round(NegativeCosine()(torch.eye(2), torch.tensor([0, 0])).item(), 4)
    -0.5
    """

    shares_queries: bool = False
    counts_singletons: bool = False
    accepts_virtual: bool = False
    compute: Callable[..., Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.diagnostics: dict[str, Tensor] = {}
        self.lengths_watched = 0

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """Loss of a batch: embeddings (N, D), labels (N,) integers -> scalar.

        Raises:
            ValueError: for settings out of range, shapes, dtypes or devices that do not fit, embeddings that are not
                finite, and `queries` or `pairs` for a loss without the ability.
        """
        self.check_settings()
        embeddings, labels = check_batch(embeddings, labels)
        able = {"queries": self.shares_queries, "pairs": self.accepts_virtual}
        options: dict[str, Any] = {"queries": queries, "pairs": pairs}
        options = {name: value for name, value in options.items() if value is not None}
        for name in options:
            if not able[name]:
                raise ValueError(f"{type(self).__name__} takes no `{name}`.")
        with torch.autocast(embeddings.device.type, enabled=False):
            loss = self.compute(embeddings, labels, **options)
        self.warn_if_long(embeddings)
        return loss

    def check_settings(self) -> None:
        """Raises ValueError for settings out of range; called by every `forward`, since settings may change."""

    def warn_if_long(self, embeddings: Tensor) -> None:
        """Warns once if a row of the first batches is longer than 1."""
        if self.lengths_watched == WATCHED_BATCHES or torch.compiler.is_compiling():
            return
        self.lengths_watched += 1
        longest = embeddings.detach().norm(dim=1).max().item()
        if longest > LONGEST:
            self.lengths_watched = WATCHED_BATCHES
            warnings.warn(
                f"{type(self).__name__} is meant for embeddings of length 1, but a row has length {longest:.3g}: "
                "normalise them, F.normalize(embeddings, dim=1), as the metrics do.",
                stacklevel=5,  # who called the loss
            )


def declares(loss: nn.Module, ability: str) -> bool:
    """Whether a loss declares an ability of `RetrievalLoss`."""
    return bool(getattr(loss, ability, False))


def check_batch(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) in fp32 or fp64 and labels (N,) in int64.

    Raises:
        ValueError: unless embeddings and integer labels form a batch.
    """
    check_tensors(embeddings, labels)
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings must be floating point of shape (N, D), got {embeddings.dtype} {tuple(embeddings.shape)}."
        )
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels must hold one label per embedding, shape ({len(embeddings)},), got shape {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, got {labels.dtype}.")
    if labels.device != embeddings.device:
        raise ValueError(f"labels are on {labels.device}, embeddings on {embeddings.device}: move one of them.")
    exact = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return exact, labels.long()


def check_tensors(embeddings: Any, labels: Any) -> None:
    """Raises ValueError for lists, arrays and whatever else is no tensor."""
    for name, given in (("embeddings", embeddings), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(given).__name__}: convert with torch.as_tensor.")


def check_finite(embeddings: Tensor) -> None:
    """Raises ValueError for NaN and infinity; waits for the device."""
    if not torch.isfinite(embeddings).all():
        raise ValueError("embeddings hold NaN or infinity: lower the learning rate or clip gradients.")


def check_above_zero(**settings: float) -> None:
    """Raises ValueError unless all settings are finite numbers above 0."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0, got {value}.")


def check_ks(ks: Sequence[int]) -> None:
    """Raises ValueError unless all cut-offs are integers from 1."""
    if not ks or any(k < 1 or int(k) != k for k in ks):
        raise ValueError(f"ks must be one or more integers from 1, got {tuple(ks)}.")
