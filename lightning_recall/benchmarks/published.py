"""The published Recall@k surrogate, run from a local clone of github.com/yash0307/RecallatK_surrogate."""

import ast
import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm


def published_loss(folder: str, batch_size: int, num_classes: int, dim: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Builds a function that sums the clone's loss over all queries, for equal-sized classes in contiguous order.

    The clone divides the loss of a query by the batch size, so the sum is the mean over the queries.

    Raises:
        ValueError: if the folder is not such a clone.
    """
    criterion = published_criterion(folder, batch_size, num_classes, dim)

    def loss(embeddings: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001  # classes are inferred from the position
        with cuda_as_noop():
            return torch.stack([criterion(embeddings, query) for query in range(len(embeddings))]).sum()

    return loss


def published_criterion(folder: str, batch_size: int, num_classes: int, dim: int) -> nn.Module:
    """The clone's loss of one query: (embeddings (N, D), position of the query) -> scalar.

    Raises:
        ValueError: if the folder is not such a clone.
    """
    # not by its name on sys.path: the clone also has modules with the names of packages, such as `datasets`
    names = run_path(str(source_file(folder, "losses.py")))
    ks = [1, 2, 4, 8, 16]
    with cuda_as_noop():
        criterion: nn.Module = names["RecallatK"](0.01, batch_size, num_classes, dim, ks, [1] * len(ks), mixup=False)
    return criterion


def source_file(folder: str, name: str) -> Path:
    """A source file of the clone.

    Raises:
        ValueError: if there is no such file.
    """
    source = Path(folder) / "src" / name
    if not source.exists():
        raise ValueError(f"{source} not found: give the folder of a clone of RecallatK_surrogate.")
    return source


def published_epoch(
    folder: str,
    criterion: Callable[[], nn.Module],
    chunk_size: int,
    dim: int,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    """Trains with the clone's `train_one_epoch`, which embeds each batch twice, in chunks.

    The clone's main.py parses the command line and needs a GPU when it is imported, so that only this function is run,
    with its global names.

    Args:
        folder: the clone.
        criterion: builds the loss, see `published_criterion`.
        chunk_size: images in one pass of the model.
        dim: length of an embedding.
        model: images (b, ...) -> embeddings (b, D).
        batches: pairs (images, labels), with a length.
        optimizer: builds the optimizer from the parameters.
    """
    source = source_file(folder, "main.py")
    functions: list[ast.stmt] = [
        node
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "train_one_epoch"
    ]
    log = SimpleNamespace(log=lambda *_: None, metrics_to_log={"train": None})
    writer = SimpleNamespace(add_scalar=lambda *_: None)
    names: dict[str, Any] = {"torch": torch, "np": np, "copy": copy, "time": time, "LOG": log, "writer": writer}
    names["tqdm"] = partial(tqdm, disable=True)
    exec(compile(ast.Module(functions, []), str(source), "exec"), names)
    device = next(model.parameters()).device
    options = SimpleNamespace(device=device, embed_dim=dim, bs_base=chunk_size, grad_measure=False)
    with cuda_as_noop():
        names["train_one_epoch"](LabelsFirst(batches), model, optimizer(model.parameters()), criterion(), options, 0)


class LabelsFirst:
    """Yields (labels, images), as the clone's loader does.

    Args:
        batches: pairs (images, labels), with a length.
    """

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        assert isinstance(self.batches, Sized)  # `published_epoch` asks for it
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((labels, images) for images, labels in self.batches)


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
