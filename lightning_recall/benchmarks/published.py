"""The published Recall@k surrogate, run from a local clone of github.com/yash0307/RecallatK_surrogate."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor


def published_loss(folder: str, batch_size: int, num_classes: int, dim: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Builds a function that sums the clone's loss over all queries, for equal-sized classes in contiguous order.

    The clone divides the loss of a query by the batch size, so the sum is the mean over the queries.

    Raises:
        ValueError: if the folder is not such a clone.
    """
    source = Path(folder) / "src"
    if not (source / "losses.py").exists():
        raise ValueError(f"{source / 'losses.py'} not found: give the folder of a clone of RecallatK_surrogate.")
    sys.path.insert(0, str(source))
    ks = [1, 2, 4, 8, 16]
    with cuda_as_noop():
        build = import_module("losses").RecallatK
        criterion = build(0.01, batch_size, num_classes, dim, ks, [1] * len(ks), mixup=False)

    def loss(embeddings: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001  # classes are inferred from the position
        with cuda_as_noop():
            return torch.stack([criterion(embeddings, query) for query in range(len(embeddings))]).sum()

    return loss


@contextmanager
def cuda_as_noop() -> Iterator[None]:
    """Makes `.cuda()` a no-op without a GPU, because the published code calls it unconditionally."""
    original = torch.Tensor.cuda

    def return_self(tensor: Tensor, *_: object, **__: object) -> Tensor:
        return tensor

    if not torch.cuda.is_available():
        torch.Tensor.cuda = return_self  # type: ignore[method-assign, assignment]  # restored below
    try:
        yield
    finally:
        torch.Tensor.cuda = original  # type: ignore[method-assign]  # restores it
