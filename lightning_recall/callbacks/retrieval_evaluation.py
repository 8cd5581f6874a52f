"""Scores any LightningModule by Recall@k on validation and test."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import functional_call

from lightning_recall.callbacks.batches import (
    UNREADABLE,
    embeddings_of_batch,
    images_and_labels,
    loader_at,
    roles,
    rows_in_order,
)
from lightning_recall.metrics import RecallAtK, RevisitedMAP
from lightning_recall.metrics.revisited import GroundTruth

MODEL, UNTRAINED, PIXELS = "model", "untrained", "pixels"
ROW_NAMES = {MODEL: "model", UNTRAINED: "before training", PIXELS: "raw pixels"}


class RetrievalEvaluation(Callback):
    """Logs `val/recall@k` and `test/recall@k` of a module whose forward gives embeddings (b, D) of images (b, ...).

    Every image of the split queries all the others (`RecallAtK`). Batches are (images, labels). Where the module's
    validation or test step returns a dict with "embeddings", as `RetrievalModule`'s do, they are not computed again; a
    module needs such steps, were they empty, for Lightning to run over the data. ModelCheckpoint and EarlyStopping can
    monitor the logged keys. With several dataloaders each has its own: `val/0/recall@1`, `val/1/recall@1`, ..., or
    `test/small/recall@1` where they are a dict with names. With several processes, an image that fills up a process's
    last batch counts once.

    A data set may tell by `is_query` and `is_gallery`, arrays (N,) of bool, which images search and which are searched.
    One with a `ground_truth` of easy, hard and junk images, such as revisited Oxford and Paris, is scored by
    `RevisitedMAP`. Images with the label -100 are left out: the data modules' mark of a file that could not be read.

    `trainer.validate` and `trainer.test` end with a table.

    Args:
        ks: cut-offs, integers from 1.
        baselines: whether the test also scores, in the same pass, the raw pixels and the weights that the module had
            when this callback first saw it, before training or before a checkpoint was loaded. They are logged as
            `test/pixels/recall@k` and `test/untrained/recall@k`.

    Raises:
        ValueError: for wrong `ks`, and during evaluation if the embeddings or labels of a batch are not what
            `RecallAtK` takes, or no image has another of its class.
    """

    def __init__(self, ks: Sequence[int] = (1, 2, 4, 8), baselines: bool = False) -> None:
        RecallAtK(ks)  # refuses wrong ks now, not after an epoch
        self.ks = tuple(ks)
        self.baselines = baselines
        self.initial_state: dict[str, Tensor] = {}
        self.metrics: dict[tuple[int, str], RecallAtK | RevisitedMAP] = {}  # (dataloader, what is scored)
        self.rows: dict[int, list[int] | None] = {}  # of the data set, still to come from each dataloader

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps a copy of the weights before training, if they are to be scored."""
        if self.baselines and not self.initial_state:
            state = (*pl_module.named_parameters(), *pl_module.named_buffers())
            self.initial_state = {name: value.detach().clone() for name, value in state}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the last evaluation."""
        self.metrics, self.rows = {}, {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the last evaluation."""
        self.metrics, self.rows = {}, {}
        self.initial_state = {name: value.to(pl_module.device) for name, value in self.initial_state.items()}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes in a batch."""
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        embeddings = embeddings_of_batch(trainer, pl_module, outputs, batch)
        self.update(loader_at(loaders, dataloader_idx), dataloader_idx, {MODEL: embeddings}, batch[1])

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes in a batch, for the baselines too."""
        scored = {}
        if self.baselines:
            images, _ = images_and_labels(batch)
            scored[PIXELS] = images.flatten(1).float()
            with trainer.precision_plugin.forward_context():
                scored[UNTRAINED] = functional_call(pl_module, self.initial_state, (images,))
        scored[MODEL] = embeddings_of_batch(trainer, pl_module, outputs, batch)
        self.update(loader_at(trainer.test_dataloaders, dataloader_idx), dataloader_idx, scored, batch[1])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the scores, except of the sanity check, which sees too little to score."""
        if not trainer.sanity_checking:
            self.log_scores(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the scores."""
        self.log_scores(trainer, pl_module, "test")

    def update(self, loader: Any, dataloader_idx: int, scored: dict[str, Tensor], labels: Tensor) -> None:
        """Adds a batch to the metrics of its dataloader, one for each kind of embeddings (b, D) in `scored`."""
        rows = self.rows.setdefault(dataloader_idx, rows_in_order(loader))
        indices = None if rows is None else torch.tensor(rows[: len(labels)])
        self.rows[dataloader_idx] = None if rows is None else rows[len(labels) :]
        for kind, embeddings in scored.items():
            metric = self.metrics.get((dataloader_idx, kind)) or metric_of(loader, self.ks).to(embeddings.device)
            self.metrics[dataloader_idx, kind] = metric
            if isinstance(metric, RecallAtK):
                metric.update(embeddings, labels, indices, **roles(loader, indices))
            else:
                metric.update(embeddings, indices)

    def log_scores(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        """Computes and logs all scores of a split; shows them unless the training is going on."""
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        several = isinstance(loaders, Mapping) or any(dataloader_idx for dataloader_idx, _ in self.metrics)
        names = list(loaders) if isinstance(loaders, Mapping) else range(len(self.metrics))
        rows: dict[str, dict[str, Tensor]] = {}
        for (dataloader_idx, scored), metric in self.metrics.items():
            part = names[dataloader_idx]
            name = ROW_NAMES[scored] + (f" on {'dataloader ' * isinstance(part, int)}{part}" if several else "")
            prefix = split + (f"/{part}" if several else "") + (f"/{scored}" if scored != MODEL else "")
            rows[name] = scores = metric.compute()
            logged = {f"{prefix}/{key}": score for key, score in scores.items()}
            pl_module.log_dict(logged, sync_dist=True, add_dataloader_idx=False)
        self.metrics = {}
        if rows and trainer.state.fn != "fit":
            print_scores(rows, split)


def metric_of(loader: Any, ks: Sequence[int]) -> RecallAtK | RevisitedMAP:
    """What a dataloader is scored by: mAP where its data set tells a `ground_truth`, else Recall@k."""
    ground_truth = getattr(loader.dataset, "ground_truth", None)
    if ground_truth is None:
        return RecallAtK(ks, ignore_index=UNREADABLE)
    return RevisitedMAP([GroundTruth(*parts) for parts in ground_truth], ks)


@rank_zero_only
def print_scores(rows: dict[str, dict[str, Tensor]], split: str) -> None:
    """Prints one row of percentages for each thing scored."""
    table = Table(title=f"Recall@k on the {split} split, in %")
    table.add_column("")
    for name in next(iter(rows.values())):
        table.add_column(name.replace("recall", "R"), justify="right")
    for name, scores in rows.items():
        table.add_row(name, *(f"{100 * score.item():.1f}" for score in scores.values()))
    Console().print(table)
