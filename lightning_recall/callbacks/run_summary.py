"""Prints a summary before and after training, and logs throughput."""

import time
from importlib.metadata import version
from typing import Any

import torch
from rich import get_console
from rich.markup import escape
from rich.table import Table

from lightning_recall import _lightning
from lightning_recall._lightning import Callback, LightningModule, ModelCheckpoint, Trainer, rank_zero_only
from lightning_recall.batch import chunks_of_batch
from lightning_recall.callbacks.output import end_progress_bar, writes_files
from lightning_recall.callbacks.validation_history import history_of, monitor_of, result_table


class RunSummary(Callback):
    """Prints a table before the first step and one after training, and logs images per second.

    The first table lists network, number of steps, device, Lightning package and batch. A module may define
    `training_summary(batch)`, a dict of more rows, as `RetrievalModule` does for loss, chunks and memory; rows with the
    same name replace the default rows. `training_summary` is called on all processes with the first batch. The last
    table shows, in percent, the baselines, the best and the last validation in a `ValidationHistory`, which
    `RetrievalEvaluation` and `SegmentationModule` have as their attribute `history`. Other logged keys that start with
    "val/", and the best score of a ModelCheckpoint that monitors another key, are listed below. `images/s`, summed over
    processes and including data loading, is logged and shown in the progress bar. A batch is a pair (inputs, labels) or
    a list of such chunks; other batch types are not counted.

    `lightning-recall` adds it to every run.
    """

    def __init__(self) -> None:
        self.printed = False
        self.start_time = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resets the flag, so that each fit prints once."""
        self.printed = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the timer."""
        self.start_time = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restarts the timer, so that validation time is excluded."""
        self.start_time = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Prints the summary at the first batch."""
        if not self.printed:
            self.printed = True
            print_rows("Training", {**run_rows(trainer, pl_module), **batch_rows(trainer, batch, pl_module)})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs images per second."""
        size = trainer.world_size * sum(len(labels) for _, labels in chunks_of_batch(batch))
        now = time.perf_counter()
        if size:
            pl_module.log("images/s", size / (now - self.start_time), prog_bar=True, batch_size=size)
        self.start_time = now

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the last and the best validation scores."""
        history, logged = history_of(trainer), trainer.callback_metrics
        shown = history.validations[-1].scores if history else {}
        rows = {key: f"{float(logged[key]):.4f}" for key in logged if key.startswith("val/") and key not in shown}
        for checkpoint in trainer.checkpoint_callbacks:
            if not isinstance(checkpoint, ModelCheckpoint) or checkpoint.monitor in shown:
                continue
            if checkpoint.best_model_score is not None:
                rows[f"best {checkpoint.monitor}"] = f"{float(checkpoint.best_model_score):.4f}"
        if not writes_files(trainer):
            return
        end_progress_bar(trainer)
        if history and trainer.is_global_zero:
            get_console().print(result_table(history, monitor_of(trainer)))
        if rows:
            print_rows("Last validation", rows)


def run_rows(trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
    """Rows of the summary that do not depend on the batch."""
    parameters = list(pl_module.parameters())
    total = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    device = torch.cuda.get_device_name(pl_module.device) if pl_module.device.type == "cuda" else pl_module.device.type
    processes = f"{trainer.world_size} processes" if trainer.world_size > 1 else "1 process"
    steps, batches_per_epoch = trainer.estimated_stepping_batches, trainer.num_training_batches
    return {
        "network": f"{type(pl_module).__name__}, {total / 1e6:,.2f} million parameters, {trainable / 1e6:,.2f} million "
        "trainable",
        "steps": f"{steps:,.0f}, {batches_per_epoch:,} {'batch' if batches_per_epoch == 1 else 'batches'} per epoch",
        "device": f"{device}, {processes}, precision {trainer.precision}",
        "Lightning": f"{_lightning.PACKAGE} {version(_lightning.PACKAGE.partition('.')[0])}",
    }


def batch_rows(trainer: Trainer, batch: Any, pl_module: LightningModule) -> dict[str, str]:
    """Rows of the summary that depend on the batch: its size, and what the module adds."""
    rows = {}
    chunks = chunks_of_batch(batch)
    if chunks:
        labels = torch.cat([labels for _, labels in chunks])
        images = trainer.world_size * len(labels)
        classes = f" of {len(set(labels.tolist())):,} classes" if labels.ndim == 1 else ""  # multi-label otherwise
        is_distributed = trainer.world_size > 1
        batch_text = f", {len(labels):,}{classes} on each process" if is_distributed else classes
        rows["batch"] = f"{images:,} images{batch_text}"
    training_summary = getattr(pl_module, "training_summary", None)
    return {**rows, **training_summary(batch)} if callable(training_summary) else rows


@rank_zero_only
def print_rows(title: str, rows: dict[str, str]) -> None:
    """Prints a table of names and values."""
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    get_console().print(table)
