"""Base class of the losses: capability flags, input checks, precision, diagnostics."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recall.checks import check_finite, check_labelled_embeddings
from lightning_recall.constructor_arguments import record_arguments
from lightning_recall.tensors import at_least_float32
from lightning_recall.virtual_pairs import VirtualPairs

CHECKED_BATCHES = 20  # later batches are not checked: reading a value synchronises with the GPU
MAX_UNIT_NORM = 1.05  # tolerance on unit norm: bf16 rounds norms by 0.4 percent


@record_arguments
class RetrievalLoss(nn.Module):
    """Base class of the losses: (embeddings (N, D), labels (N,)) -> scalar.

    For a loss of your own, choose a base class by what the loss is computed from:

    - the ranks of the positives: subclass `rank_loss.RankLoss` and implement `objective`;
    - the similarities of each query to all items: subclass `pairwise.PairwiseLoss` and implement `per_query_loss`;
    - anything else: subclass this class and implement `compute(embeddings, labels)`, which returns a scalar.

    `forward` checks the batch, disables autocast, and then calls `compute` with finite embeddings in fp32 or fp64 and
    int64 labels. A loss that overrides `forward` must do this itself. `compute` may set `diagnostics`. Override
    `check_settings` to validate settings.

    Three class attributes are flags, False by default. With `shares_queries = True`, `compute` must accept an argument
    `queries`; with `accepts_virtual = True`, an argument `pairs`. Any other nn.Module may define the flags too. A loss
    without these flags receives neither `queries` nor `pairs`.

    The check for NaN reads a value, which would break the graph of `torch.compile`. Under `torch.compile`, custom
    losses are therefore not checked for NaN, unless `compute` calls `check_finite_if_compiling`.

    Attributes:
        shares_queries: whether the loss accepts `queries`, a slice or index tensor that restricts the queries, so that
            each process computes a part. The mean over all queries is the average of the parts, weighted by their
            number of queries.
        counts_singletons: whether an item that is alone in its class is a query.
        accepts_virtual: whether the loss accepts `pairs` from `SimilarityMixup.draw(labels)`; the M virtual items get
            the indices N, N + 1, .... Otherwise `RetrievalModule` appends the virtual embeddings to the batch.
        diagnostics: scalars of the last batch, such as "recall@1"; `RetrievalModule` logs them.

    Warns once if an embedding in the first 20 batches has norm above 1.05: temperatures and margins are meant for
    cosines, and the metrics L2-normalise the embeddings. Where dot products are intended, filter the warning.

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
        self.norm_checks = 0

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        queries: slice | Tensor | None = None,
        pairs: VirtualPairs | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            embeddings: (N, D) floating point.
            labels: (N,) integers.
            queries: slice or indices of the queries, without duplicates; None: all. The gallery is the whole batch.
            pairs: M virtual items; a plain tuple of the three tensors of `VirtualPairs` is allowed.

        Returns:
            Scalar.

        Raises:
            ValueError: for settings out of range, shapes, dtypes or devices that do not match, embeddings that are not
                finite, and `queries` or `pairs` if the loss does not support them.
        """
        self.check_settings()
        embeddings, labels = check_batch(embeddings, labels)
        options: dict[str, Any] = {}
        if queries is not None:
            options["queries"] = queries
        if pairs is not None:
            options["pairs"] = VirtualPairs(*pairs)
        supported = {"queries": self.shares_queries, "pairs": self.accepts_virtual}
        for name in options:
            if not supported[name]:
                raise ValueError(f"{type(self).__name__} does not support `{name}`.")
        with torch.autocast(embeddings.device.type, enabled=False):
            loss = self.compute(embeddings, labels, **options)
        if loss.ndim:
            raise ValueError(f"{type(self).__name__}.compute must return a scalar, got shape {tuple(loss.shape)}.")
        self.warn_if_not_normalized(embeddings)
        return loss

    def check_settings(self) -> None:
        """Raises ValueError for settings out of range; called by every `forward`, since settings may change."""

    def warn_if_not_normalized(self, embeddings: Tensor) -> None:
        """Warns once if an embedding in the first batches is not normalised."""
        if self.norm_checks == CHECKED_BATCHES or torch.compiler.is_compiling():
            return
        self.norm_checks += 1
        largest = embeddings.detach().norm(dim=1).max().item()
        if largest > MAX_UNIT_NORM:
            self.norm_checks = CHECKED_BATCHES
            warnings.warn(
                f"{type(self).__name__} expects unit-norm embeddings, but one has norm {largest:.3g}: "
                "normalise them, F.normalize(embeddings, dim=1), as the metrics do.",
                stacklevel=5,  # points at the caller of the loss
            )


def has_flag(loss: nn.Module, flag: str) -> bool:
    """Whether a loss sets a capability flag of `RetrievalLoss`, such as "shares_queries"."""
    return bool(getattr(loss, flag, False))


def check_batch(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns embeddings (N, D) in fp32 or fp64 and labels (N,) in int64.

    Raises:
        ValueError: unless embeddings are finite floating point (N, D) and labels integers (N,), on one device.
    """
    check_labelled_embeddings(embeddings, labels)
    embeddings = at_least_float32(embeddings)
    if not torch.compiler.is_compiling():  # under torch.compile, losses call `check_finite_if_compiling` themselves
        check_finite(embeddings)
    return embeddings, labels.long()


def check_finite_if_compiling(embeddings: Tensor) -> None:
    """Under `torch.compile`, raises ValueError if embeddings contain NaN or infinity; otherwise does nothing.

    Without `torch.compile`, `check_batch` has already checked them. Reading a value breaks the compiled graph, so call
    this only in a `compute` that causes a graph break anyway, such as one that reads the number of classes.
    """
    if torch.compiler.is_compiling():
        check_finite(embeddings)


def check_per_query(values: Tensor, num_queries: int, name: str) -> Tensor:
    """Returns the values (q,) of a function of queries.

    Raises:
        ValueError: for another shape: the mean over queries would have a wrong value or gradient.
    """
    if values.shape != (num_queries,):
        raise ValueError(
            f"{name} must return one value per query, shape ({num_queries},), got shape {tuple(values.shape)}."
        )
    return values


def check_no_parameters(loss: nn.Module, base: str) -> None:
    """Raises ValueError for a loss with parameters to train, whose base class does not differentiate them."""
    names = [name for name, parameter in loss.named_parameters() if parameter.requires_grad]
    if names:
        raise ValueError(
            f"{type(loss).__name__} has parameters ({', '.join(names[:3])}), which a {base} does not train: it "
            "differentiates with respect to the embeddings only. Subclass RetrievalLoss and implement compute."
        )


def check_ks(ks: Sequence[int]) -> None:
    """Raises ValueError unless all cut-offs are positive integers.

    Unlike `checks.ks_to_tuple`, this allows repeated cut-offs: repeating one doubles its weight in the mean.
    """
    if not ks or any(k < 1 or int(k) != k for k in ks):
        raise ValueError(f"ks must be one or more positive integers, got {tuple(ks)}.")


def select_queries(is_query: Tensor, queries: slice | Tensor | None) -> Tensor:
    """Restricts a mask of queries (N,) to the given ones; None: keeps all."""
    if queries is None:
        return is_query
    selected = torch.zeros_like(is_query)
    selected[queries] = True
    return is_query & selected
