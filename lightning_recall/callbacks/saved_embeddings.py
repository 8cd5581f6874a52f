"""Keeps what `predict` computes."""

from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_recall.callbacks.output import output_path, say_where


class SavedEmbeddings(Callback):
    """After a prediction, writes `embeddings.npz` with `embeddings` (N, D) fp32 and `labels` (N,), in the data's order.

    For modules whose predict step returns embeddings (b, D), over batches (images, labels). Of several processes each
    writes its own share, `embeddings_0.npz`, `embeddings_1.npz`, ...
    """

    def __init__(self) -> None:
        self.embeddings: list[Tensor] = []
        self.labels: list[Tensor] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes in a batch."""
        self.embeddings.append(outputs.float().cpu())
        self.labels.append(batch[1].cpu())

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        share = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = output_path(trainer, f"embeddings{share}.npz")
        np.savez(path, embeddings=torch.cat(self.embeddings).numpy(), labels=torch.cat(self.labels).numpy())
        self.embeddings, self.labels = [], []
        say_where("Embeddings and labels", path)
