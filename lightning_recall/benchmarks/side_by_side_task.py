"""What the side-by-side benchmark measures: a task with a network and data, and the rows that train it."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Batches:
    """Yields batches in a fixed order, again and again, and records when each was requested.

    Sets torch's seed before each batch, so that all rows draw the same dropout masks.

    Args:
        batches: the batches.
        steps: number of batches to yield.
        seconds: processor time of this process after which no further batch is yielded; None: no limit.
    """

    def __init__(self, batches: Sequence[Any], steps: int, seconds: float | None = None) -> None:
        self.batches, self.steps, self.seconds = batches, steps, seconds
        self.times: list[float] = []

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        start = time.process_time()
        for step in range(self.steps):
            self.times.append(time.perf_counter())
            if self.seconds is not None and time.process_time() - start > self.seconds:
                return
            torch.manual_seed(step)
            yield self.batches[step % len(self.batches)]


class Row(NamedTuple):
    """A training step to measure.

    step: the library and how it embeds the batch.
    loss: name of the loss.
    train: trains a model on batches, with one optimizer step for each.
    batch_loss: computes the same loss in one graph: (embed, batch) -> scalar, where `embed` embeds one input tensor or
        dict. It is the reference for the gradient.
    in_chunks: whether the step embeds chunks; the reference then draws its dropout masks chunk by chunk.
    distributed: whether the step supports several processes.
    """

    step: str
    loss: str
    train: Callable[[nn.Module, Batches, OptimizerFactory], None]
    batch_loss: Callable[[Callable[[Any], Tensor], Any], Tensor]
    in_chunks: bool = True
    distributed: bool = True

    @property
    def name(self) -> str:
        """Step and loss."""
        return f"{self.step}, {self.loss}"


class Task(Protocol):
    """A network, its data, and the rows that train it. Instances are pickled and sent to other processes."""

    @property
    def items(self) -> str:
        """What the rows count per second: "images" or "pairs"."""

    @property
    def batch_size(self) -> int:
        """Items in a batch, over all processes."""

    def rows(self) -> list[Row]:
        """The rows whose packages are installed."""

    def absent(self) -> dict[str, str]:
        """Step that is left out -> what to do to have it measured."""

    def build(self, dropout: float = 0.0) -> nn.Module:
        """The network in train mode, with the same initial weights at every call."""

    def batches(self, count: int) -> list[Any]:
        """The first training batches."""

    def local_batch(self, batch: Any, rank: int, processes: int) -> Any:
        """The part of a batch that one of several processes trains on."""

    def in_chunks(self, model: nn.Module) -> Callable[[Any], Tensor]:
        """A function that embeds inputs in chunks, in one graph."""

    def score(self, model: nn.Module) -> float:
        """Recall@1 on unseen classes."""


def row_of(task: Task, name: str) -> Row:
    """The row with this name; rows hold functions, which cannot be sent to other processes."""
    return next(row for row in task.rows() if row.name == name)
