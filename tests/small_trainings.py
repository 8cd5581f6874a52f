"""Short trainings of a small timm backbone, shared by the tests of fine-tuning."""

import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import ClassBalancedBatchSampler, ImageEmbedder, RecallAtKLoss, RetrievalModule
from lightning_recall.data import ChunkLoader

LABELS = torch.arange(16) // 2
IMAGES = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Images(LightningDataModule):
    """Two batches an epoch, of 8 images in 4 classes, in chunks of 4."""

    def train_dataloader(self):
        return ChunkLoader(TensorDataset(IMAGES, LABELS), ClassBalancedBatchSampler(LABELS, 8, 2), 4)

    def val_dataloader(self):
        return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8)


def timm_embedder():
    torch.manual_seed(0)
    return ImageEmbedder("test_efficientnet", embedding_dim=8, pretrained=False)


def make_module(embedder=None, loss=None, **kwargs):
    return RetrievalModule(embedder or timm_embedder(), loss or RecallAtKLoss((1, 2)), chunk_size=4, **kwargs)


def fit(module, ckpt_path=None, callbacks=(), **kwargs):
    settings = {"max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": False, "logger": False, **kwargs}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), **quiet, **settings)
    trainer.fit(module, Images(), ckpt_path=ckpt_path)
    return trainer


class Wrapper(nn.Module):
    """Wraps an embedder, as LoRA does."""

    def __init__(self, embedder):
        super().__init__()
        self.embedder = embedder

    def forward(self, images):
        return self.embedder(images)
