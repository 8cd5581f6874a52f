"""Trains an embedder so that the whole batch's similarity matrix feeds the loss, whatever the batch's size."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_recall.recompute import chunked_forward

Batch = Sequence[Tensor] | Sequence[Sequence[Tensor]]
"""(images (b, ...), labels (b,)), or a list of such chunks."""


class RetrievalModule(LightningModule):
    """Manual optimization with one exact step per large batch, as in the paper.

    A training step embeds the batch chunk by chunk, gathers the embeddings of all processes, computes the loss over all
    of them, and lets backward recompute the chunks: the memory of one chunk, the gradient of the whole batch.

    Manual optimization loses nothing of Lightning's: the schedulers step, by epoch or by step, and gradients are
    clipped by `gradient_clip_val` here (the Trainer refuses its own).

    A training batch is a list of chunks, as `RetrievalDataModule` makes it, or one pair (images, labels) of any loader.
    Validation and test only embed: `RetrievalEvaluation` scores.

    Args:
        embedder: images (b, ...) -> embeddings (b, D).
        loss: (embeddings (N, D), labels (N,)) -> scalar; its parameters, if any, are trained too.
        mixup: (embeddings, labels) -> more of both, such as `SimilarityMixup`; None: none.
        chunk_size: largest number of images in one pass of the embedder, per process; the activations of so many live
            at a time. BatchNorm in train mode normalises over a chunk.
        optimizer: parameters -> optimizer; None: AdamW with a learning rate of 1e-4.
        lr_scheduler: optimizer -> scheduler; None: a constant learning rate. For `ReduceLROnPlateau` take
            `pytorch_lightning.cli.ReduceLROnPlateau`, which tells its monitor.
        lr_interval: whether the scheduler steps after every "epoch" or every "step".
        gradient_clip_val: largest norm of the gradient; None: not clipped.

    Raises:
        ValueError: for a `chunk_size` below 1, a `gradient_clip_val` that is not above 0, or a plateau by the step.

    Logs `train/loss`, and, every `log_every_n_steps`, the loss's `diagnostics` if it has any: `train/recall@1`,
    `train/active_positives`, ...
    """

    def __init__(
        self,
        embedder: nn.Module,
        loss: nn.Module,
        mixup: nn.Module | None = None,
        chunk_size: int = 128,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        gradient_clip_val: float | None = None,
    ) -> None:
        super().__init__()
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"gradient_clip_val must be above 0, or None for no clipping, got {gradient_clip_val}.")
        self.automatic_optimization = False
        self.embedder = embedder
        self.loss = loss
        self.mixup = mixup
        self.chunk_size = chunk_size
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.gradient_clip_val = gradient_clip_val

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (b, D) of images (b, ...)."""
        embeddings: Tensor = self.embedder(images)
        return embeddings

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimizer step on one large batch."""
        images, own_labels = split_chunks(batch)
        own_embeddings = chunked_forward(self.embedder, images, self.chunk_size)  # (b, D)
        embeddings, labels = self.gather(own_embeddings), self.gather(torch.cat(own_labels))  # (N, D), (N,)
        with torch.autocast(embeddings.device.type, enabled=False):  # similarities need fp32: ranks differ by 0.01
            embeddings = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
            if self.mixup is not None:
                embeddings, labels = self.mixup(embeddings, labels)
            loss = self.loss(embeddings, labels)

        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)  # configure_optimizers gives one
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        if self.lr_interval == "step":
            self.step_schedulers()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(labels))
        if self.logs_this_batch():
            diagnostics = getattr(self.loss, "diagnostics", {})
            self.log_dict({f"train/{name}": value for name, value in diagnostics.items()}, batch_size=len(labels))

    def logs_this_batch(self) -> bool:
        """Whether the loggers are written to after this batch: else logging would only take time."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by Lightning
        return bool(every) and (self.trainer.fit_loop.total_batch_idx + 1) % every == 0

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes (N, ...) from each one's (b, ...), differentiably; in one process, the rows."""
        if self.trainer.world_size == 1:
            return rows
        gathered = self.all_gather(rows, sync_grads=rows.requires_grad)
        assert isinstance(gathered, Tensor)  # (processes, b, ...)
        return gathered.flatten(0, 1)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """{"embeddings": (b, D)} of a batch (images, labels), for the callbacks."""
        return {"embeddings": self(batch[0])}

    def test_step(self, batch: Sequence[Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As `validation_step`."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Embeddings (b, D) of a batch (images, labels)."""
        embeddings: Tensor = self(batch[0])
        return embeddings

    def configure_optimizers(self) -> Any:
        """The optimizer and scheduler that were asked for."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = self.optimizer(parameters) if self.optimizer else torch.optim.AdamW(parameters, lr=1e-4)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            if self.lr_interval == "step":
                raise ValueError('ReduceLROnPlateau waits for a validation: set lr_interval="epoch".')
            if not isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(
                    "torch's ReduceLROnPlateau does not tell what to monitor: "
                    "use pytorch_lightning.cli.ReduceLROnPlateau."
                )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.lr_interval}}

    def on_train_start(self) -> None:
        """Compares the training, resumed or new, with a schedule that has an end, such as OneCycleLR's."""
        scheduler = self.lr_schedulers()
        total = getattr(scheduler, "total_steps", None)
        planned = self.trainer.estimated_stepping_batches if self.lr_interval == "step" else self.trainer.max_epochs
        if not isinstance(total, int) or planned is None or not 0 < planned < float("inf") or planned == total:
            return
        mismatch = (
            f"{type(scheduler).__name__} ends after total_steps={total}, but the training takes {planned} "
            f"{self.lr_interval}s"
        )
        if planned > total:
            raise ValueError(f"{mismatch}: set total_steps to {planned}, or train for less.")
        rank_zero_warn(f"{mismatch}, so that the learning rate will not come down: set total_steps to {planned}.")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradient: here, and not in `training_step`, it is no longer scaled by mixed precision."""
        if self.gradient_clip_val is not None:
            self.clip_gradients(optimizer, self.gradient_clip_val, gradient_clip_algorithm="norm")

    def on_train_epoch_end(self) -> None:
        """Steps the scheduler that steps by the epoch; validation is over by then."""
        if self.lr_interval == "epoch":
            self.step_schedulers()

    def step_schedulers(self) -> None:
        """Steps the scheduler, if any."""
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau):
            self.step_plateau(scheduler)
        elif scheduler is not None:
            assert not isinstance(scheduler, list)  # configure_optimizers gives one
            scheduler.step()

    def step_plateau(self, scheduler: ReduceLROnPlateau) -> None:
        """Shows the plateau scheduler its monitor, one of validation only after a validation."""
        every = self.trainer.check_val_every_n_epoch
        if scheduler.monitor.startswith("val") and every is not None and (self.current_epoch + 1) % every:
            return
        metrics = self.trainer.callback_metrics
        if scheduler.monitor not in metrics:
            raise ValueError(
                f"ReduceLROnPlateau monitors {scheduler.monitor!r}, but only {sorted(metrics)} are logged."
            )
        scheduler.step(metrics[scheduler.monitor])


def split_chunks(batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Images and labels of a training batch, each as a list of chunks; a plain pair is one chunk."""
    chunks = [batch] if isinstance(batch[0], Tensor) else batch
    images, labels = zip(*chunks, strict=True)
    return list(images), list(labels)
