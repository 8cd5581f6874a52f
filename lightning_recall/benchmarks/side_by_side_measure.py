"""Time, memory, all-reduces, gradient and score of the training steps that the side-by-side benchmark compares."""

import logging
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial, wraps
from itertools import pairwise
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lightning_recall._lightning import PACKAGE
from lightning_recall.benchmarks.measure import peak_bytes, peak_tensor_bytes
from lightning_recall.benchmarks.side_by_side_task import Batches, Row, Task, row_of

CPU = torch.device("cpu")
DROPOUT = 0.1
PROCESSES = 2
THREADS = 2
WARM_UP = 1  # steps of each round that are not timed
RATE = 1e-3  # learning rate of AdamW, for all rows


def helpers() -> BaseContext:
    """Processes that have imported the benchmark, and have not run torch yet."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.side_by_side_{name}" for name in ("images", "text")])
    return context


def set_up(threads: int) -> None:
    """Sets the number of threads, and silences messages of Lightning and warnings about other packages' old calls."""
    torch.set_num_threads(threads)
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    for message in (".*isinstance.treespec, LeafSpec.*", "torch.distributed.nn.functional.* is deprecated"):
        warnings.filterwarnings("ignore", message, FutureWarning)
    warnings.filterwarnings("ignore", "You defined a `validation_step` but have no")  # scores are computed elsewhere


def step_seconds(task: Task, rows: Sequence[Row], rounds: int, steps: int) -> Iterator[tuple[str, float]]:
    """Times some steps of each row in each round, and yields its name and the median seconds of a step so far."""
    batches, times = task.batches(steps + WARM_UP), {row.name: list[float]() for row in rows}
    for row in list(rows) * rounds:
        # a step ends with the request for the next batch
        requests = Batches(batches, steps + WARM_UP + 1)
        row.train(task.build(), requests, partial(torch.optim.AdamW, lr=RATE))
        ends = requests.times[WARM_UP:]
        times[row.name] += [end - start for start, end in pairwise(ends)]
        yield row.name, statistics.median(times[row.name])


class Peak(NamedTuple):
    """Peak memory of a step in MiB.

    tensors: all tensors, with model and batch.
    process: growth of the process, without model and batch; its allocator cannot reuse every freed block.
    """

    tensors: float
    process: float


def peak_of_step(task: Task, name: str) -> Peak:
    """The memory of a step, after a first one."""
    set_up(THREADS)
    model, batches, row = task.build(), task.batches(1), row_of(task, name)

    def run() -> None:
        row.train(model, Batches(batches, 1), partial(torch.optim.SGD, lr=0.0))

    run()
    return Peak(peak_tensor_bytes(run) / 2**20, peak_bytes(run, CPU) / 2**20)


def peaks(task: Task, rows: Sequence[Row]) -> Iterator[tuple[str, Peak]]:
    """Yields name and `peak_of_step` of each row, each measured in a process of its own."""
    for row in rows:
        with ProcessPoolExecutor(1, helpers()) as process:
            yield row.name, process.submit(peak_of_step, task, row.name).result()


def gradient_of_step(row: Row, model: nn.Module, batch: Any) -> Tensor:
    """The gradient (P,) that one step of the row gives to its optimizer: the change of weights by SGD with rate 1."""
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    row.train(model, Batches([batch], 1), partial(torch.optim.SGD, lr=1.0))
    return before - nn.utils.parameters_to_vector(model.parameters()).detach()


def gradient_of_graph(task: Task, row: Row, dropout: float, batch: Any) -> Tensor:
    """The gradient (P,) of the row's loss over the whole batch, with all embeddings in one graph."""
    model = task.build(dropout).double()
    torch.manual_seed(0)  # of the first batch, see `Batches`
    embed = task.in_chunks(model) if row.in_chunks else model
    gradients = torch.autograd.grad(row.batch_loss(embed, batch), list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def relative_error(gradient: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest entry of the expected gradient."""
    return float((gradient - expected).abs().max() / expected.abs().max())


def double_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a function with float64 as torch's default dtype."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_default_dtype(dtype)

    return run


@double_precision
def gradient_error(task: Task, row: Row, dropout: float = 0.0) -> float:
    """Error of a step's gradient in float64, relative to the gradient of the whole batch in one graph."""
    (batch,) = task.batches(1)
    gradient = gradient_of_step(row, task.build(dropout).double(), batch)
    return relative_error(gradient, gradient_of_graph(task, row, dropout, batch))


class Synchronisation(NamedTuple):
    """How often a step of two processes reduces all gradients, and the error of the reduced gradient."""

    all_reduces: int
    error: float


def synchronisations(task: Task, rows: Sequence[Row]) -> list[tuple[str, Synchronisation]]:
    """Runs a step of each row on two processes, with half of the batch each; the rows must support it."""
    names = [row.name for row in rows]
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(PROCESSES, helpers()) as processes:
        store = f"file://{Path(folder) / 'store'}"
        runs = [processes.submit(run_process, task, names, rank, store) for rank in range(PROCESSES)]
        return list(zip(names, runs[0].result(), strict=True))


@double_precision
def run_process(task: Task, names: Sequence[str], rank: int, store: str) -> list[Synchronisation]:
    """Runs a step of each row in one of the processes, in float64."""
    set_up(threads=1)
    (batch,) = task.batches(1)  # of all processes; the package's samplers would draw a part of it below
    os.environ["LOCAL_RANK"] = str(rank)  # Lightning then starts no processes
    distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=PROCESSES, timeout=timedelta(minutes=1)
    )
    counter, found = count_all_reduces(), []
    for row in (row_of(task, name) for name in names):
        counter.clear()
        gradient = gradient_of_step(row, task.build().double(), task.local_batch(batch, rank, PROCESSES))
        error = relative_error(gradient, gradient_of_graph(task, row, 0.0, batch))
        found.append(Synchronisation(len(counter), error))
    distributed.destroy_process_group()
    return found


def count_all_reduces() -> list[int]:
    """Returns a list that grows by one whenever DistributedDataParallel has reduced all gradients.

    DistributedDataParallel splits large gradients into buckets; all buckets count as one.
    """
    reduced: list[int] = []

    def hook(_: object, bucket: GradBucket) -> Future[Tensor]:
        if bucket.is_last():
            reduced.append(bucket.index())
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # None is the default group

    build = DistributedDataParallel.__init__

    @wraps(build)
    def build_with_hook(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        self.register_comm_hook(None, hook)

    DistributedDataParallel.__init__ = build_with_hook  # type: ignore[method-assign]  # counts for every library
    return reduced


def score_after(task: Task, row: Row, seconds: float, pool: int) -> float:
    """Recall@1 on unseen classes after training for some seconds of processor time, with one thread.

    Args:
        task: the task.
        row: the row that trains.
        seconds: processor time, which is the wall time on an idle machine.
        pool: number of different batches.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = task.build()
        row.train(model, Batches(task.batches(pool), 10**6, seconds), partial(torch.optim.AdamW, lr=RATE))
        return task.score(model.eval())
    finally:
        torch.set_num_threads(threads)
