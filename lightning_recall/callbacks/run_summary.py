"""Says what is about to be trained, how fast it goes, and what came of it."""

import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_recall._lightning import Callback, LightningModule, ModelCheckpoint, Trainer, rank_zero_only
from lightning_recall.optimization.step_memory import batch_size_of as num_rows
from lightning_recall.optimization.step_memory import step_memory

MIB = 2**20


class RunSummary(Callback):
    """A table before the first step, images per second in the progress bar, and a table after the training.

    The first tells network, loss, batch, chunks, processes, precision, number of steps, and the memory that a step
    takes about (`step_memory`; of modules that have a `chunk_size`, as `RetrievalModule` has). The last tells the
    scores of the last validation, and the best one that a ModelCheckpoint has kept. `images/s`, of all processes and
    with the time for loading, is logged too. Batches that are neither a pair (inputs, labels) nor a list of such
    chunks are not counted.

    `lightning-recall` adds it to every run.
    """

    def __init__(self) -> None:
        self.told = False
        self.started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Each training is told once."""
        self.told = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The time begins."""
        self.started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation within the training does not count."""
        self.started = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tells what is trained, now that a batch is there."""
        if not self.told:
            self.told = True
            print_rows("Training", {**about_network(trainer, pl_module), **about_batch(trainer, pl_module, batch)})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs images per second."""
        size, now = trainer.world_size * sum(len(labels) for _, labels in chunks_of(batch)), time.perf_counter()
        if size:
            pl_module.log("images/s", size / (now - self.started), prog_bar=True, batch_size=size)
        self.started = now

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells the last scores and the best."""
        logged = trainer.callback_metrics
        rows = {key: f"{float(logged[key]):.4f}" for key in logged if key.startswith("val/")}
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_score is not None:
                rows[f"best {checkpoint.monitor}"] = f"{float(checkpoint.best_model_score):.4f}"
        if rows and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it
            print_rows("Last validation", rows)


def chunks_of(batch: Any) -> list[tuple[Any, Tensor]]:
    """VirtualPairs (inputs, labels) of a training batch: one, or a list of chunks; none if it is something else."""
    chunks = batch if isinstance(batch, list | tuple) else []
    if len(chunks) == 2 and isinstance(chunks[1], Tensor):
        chunks = [batch]
    pairs = all(isinstance(chunk, list | tuple) and len(chunk) == 2 for chunk in chunks)
    if not (pairs and all(isinstance(labels, Tensor) and labels.ndim > 0 for _, labels in chunks)):
        return []
    return [(inputs, labels) for inputs, labels in chunks]


def about_network(trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
    """What is trained, for how long and where."""
    parameters = list(pl_module.parameters())
    total, learned = (sum(p.numel() for p in some) for some in (parameters, [p for p in parameters if p.requires_grad]))
    network, loss = (getattr(pl_module, name, None) for name in ("embedder", "loss"))
    device = torch.cuda.get_device_name(pl_module.device) if pl_module.device.type == "cuda" else pl_module.device.type
    processes = f"{trainer.world_size} processes" if trainer.world_size > 1 else "1 process"
    steps, epoch = trainer.estimated_stepping_batches, trainer.num_training_batches
    return {
        "network": f"{type(network or pl_module).__name__}, {total / 1e6:,.2f} million parameters, "
        f"{learned / 1e6:,.2f} of them trained",
        "loss": type(loss).__name__ if loss is not None else "the module's own",
        "steps": f"{steps:,.0f}, of {epoch:,} batches an epoch",
        "device": f"{device}, {processes}, precision {trainer.precision}",
    }


def about_batch(trainer: Trainer, pl_module: LightningModule, batch: Any) -> dict[str, str]:
    """The batch, how it is cut into chunks, and the memory of a step."""
    chunks = chunks_of(batch)
    if not chunks:
        return {}
    labels = torch.cat([labels for _, labels in chunks])
    images = trainer.world_size * len(labels)
    classes = f" of {len(set(labels.tolist())):,} classes" if labels.ndim == 1 else ""  # else several labels an image
    each = " on each process" if trainer.world_size > 1 else ""
    rows = {"batch": f"{images:,} images" + (f", {len(labels):,}{classes}{each}" if each else classes)}
    chunk_size = getattr(pl_module, "chunk_size", None)
    if chunk_size == "auto":
        rows["chunk_size"] = "auto: tried out at the first step"
    elif isinstance(chunk_size, int):
        sizes = [min(chunk_size, len(labels)) for _, labels in chunks]
        passes = sum(-(-len(labels) // chunk_size) for _, labels in chunks)
        rows["chunks"] = f"{passes:,} of at most {max(sizes):,} images{each}"
        if num_rows(chunks[0][0]) == 0:
            return rows
        needed = step_memory(trainer, pl_module, chunks[0][0], max(sizes))  # on all processes: BatchNorm may meet there
        rows["memory"] = (
            f"about {sum(needed) / MIB:,.0f} MiB: {needed.weights / MIB:,.0f} for weights, gradients and optimizer, "
            f"{needed.activations / MIB:,.0f} for a chunk"
        )
    return rows


@rank_zero_only
def print_rows(title: str, rows: dict[str, str]) -> None:
    """Prints a table of names and values."""
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)
