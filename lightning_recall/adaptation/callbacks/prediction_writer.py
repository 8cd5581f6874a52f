"""Writes the classes that `predict` computes to a table."""

import csv
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, distributed

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.batch import type_and_shape
from lightning_recall.callbacks.dataloaders import loader_at, named_loaders
from lightning_recall.callbacks.index_checks import check_recorded
from lightning_recall.callbacks.index_recorder import record_indices, required_indices, stop_recording
from lightning_recall.callbacks.item_names import class_name, class_names_of, paths_of
from lightning_recall.callbacks.output import (
    end_progress_bar,
    file_name,
    output_path,
    print_path,
    unused_paths,
    writes_files,
)
from lightning_recall.tensors import at_least_float32, holds_integers

REQUIRES_INDICES = "PredictionWriter names each image by its index in the data set"
Row = tuple[int, int, float | None]
"""index in the data set, class, probability of the class"""


class PredictionWriter(Callback):
    """Writes the classes that `predict` computes to `predictions.csv` in the run's folder, one row per image.

    Columns: index in the data set; path, if the data set has `paths` (N,), `image_path(index)` or torchvision's
    `samples`; class, as a number; name of the class, if it is known; and probability of the class, by softmax of the
    module's logits. The names are `class_names` of the module, the data module or the data set. Existing files are
    kept: the next table is `predictions-1.csv`. Several dataloaders have one file each.

    Works with every LightningModule whose `predict_step` returns classes (B,). There is no column of probabilities
    unless its `predict_step` calls the module, and the module returns logits (B, K).

    Raises:
        ValueError: before the first batch, if the data set indices of the images are unknown (see `index_recorder`);
            for predictions of another form.
    """

    def __init__(self) -> None:
        self.logits: Tensor | None = None  # of the last batch
        self.hook: Any = None
        self.rows: dict[int, list[Row]] = {}  # of each dataloader

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Records the data set index and the logits of each image."""
        if stage == "predict":
            record_indices(trainer)
            self.hook = pl_module.register_forward_hook(self.keep_logits)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the recording."""
        if stage == "predict":
            stop_recording(trainer)
            self.hook.remove()

    def keep_logits(self, _module: Any, _inputs: Any, output: Any) -> None:
        """Keeps the output of the module, if it is a matrix of floating-point numbers."""
        if isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point():
            self.logits = output

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that the data set indices can be recorded."""
        check_recorded(trainer.predict_dataloaders, REQUIRES_INDICES)
        self.rows = {number: [] for number in range(len(named_loaders(trainer.predict_dataloaders)))}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the predictions of a batch."""
        check_predictions(outputs, type(pl_module).__name__)
        loader = loader_at(trainer.predict_dataloaders, dataloader_idx)
        indices = required_indices(loader, batch_idx, len(outputs), REQUIRES_INDICES)
        probabilities: list[float | None] = [None] * len(outputs)
        if self.logits is not None and len(self.logits) == len(outputs):
            chosen = at_least_float32(self.logits).softmax(1).gather(1, outputs[:, None].long())
            probabilities = chosen[:, 0].tolist()
        self.logits = None
        self.rows[dataloader_idx] += zip(indices.tolist(), outputs.tolist(), probabilities, strict=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the tables."""
        loaders = named_loaders(trainer.predict_dataloaders)
        for (name, loader), rows in zip(loaders.items(), self.rows.values(), strict=True):
            rows = unique_rows(rows)  # on all processes
            if not writes_files(trainer):
                continue
            path = output_path(trainer, file_name("predictions", str(name) if len(loaders) > 1 else "") + ".csv")
            if trainer.is_global_zero:
                (path,) = unused_paths(path)
                holders = (pl_module, getattr(trainer, "datamodule", None))
                names = next(filter(None, (getattr(holder, "class_names", None) for holder in holders)), None)
                write_rows(path, rows, getattr(loader, "dataset", None), names)
                end_progress_bar(trainer)
                print_path("Predicted classes", path)


def unique_rows(rows: list[Row]) -> list[Row]:
    """The rows of all processes, sorted by index; samplers may repeat images, so that each process has as many."""
    parts: list[Any] = [rows]
    if distributed.is_available() and distributed.is_initialized():
        parts = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, rows)
    return [row for _, row in sorted({row[0]: row for row in chain.from_iterable(parts)}.items())]


def write_rows(path: Path, rows: list[Row], dataset: Any, class_names: Sequence[str] | None) -> None:
    """Writes a table; columns without any value are omitted."""
    indices, classes, probabilities = zip(*rows, strict=True) if rows else ((), (), ())
    names = class_names or class_names_of(dataset)
    columns: dict[str, Sequence[Any]] = {"index": indices}
    if callable(getattr(dataset, "image_path", None)):
        columns["path"] = [str(dataset.image_path(index)) for index in indices]
    elif (paths := paths_of(dataset, indices)) is not None:
        columns["path"] = paths
    columns["class"] = classes
    if names is not None:
        columns["name"] = [class_name(names, label) for label in classes]
    if all(value is not None for value in probabilities):
        columns["probability"] = [f"{value:.6f}" for value in probabilities]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def check_predictions(outputs: Any, module: str) -> None:
    """Raises ValueError unless a `predict_step` returned classes (B,)."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 1 or not holds_integers(outputs):
        raise ValueError(
            f"PredictionWriter needs a predict_step that returns classes (B,), integers; that of {module} returned "
            f"{type_and_shape(outputs)}."
        )
