"""A third-party LightningModule with automatic optimization, its own encoder and loader, and two lines of ours."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import RecallAtKLoss, RetrievalEvaluation, chunked_forward


class TheirModule(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))
        self.largest = 0
        self.encoder.register_forward_pre_hook(self.note_size)

    def note_size(self, _, inputs):
        self.largest = max(self.largest, len(inputs[0])) if self.training else self.largest

    def forward(self, images):
        return F.normalize(self.encoder(images), dim=1)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        embeddings = chunked_forward(self, images, chunk_size=32)
        return RecallAtKLoss(rank_temperature=0.05)(embeddings, labels)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_two_lines_train_a_third_party_module(tmp_path):
    labels = torch.arange(320) % 80
    centres = torch.cat([torch.randn(80, 6), torch.zeros(80, 14)], 1)
    images = centres[labels] + torch.randn(320, 20) * torch.tensor([0.2] * 6 + [2.0] * 14)  # 14 columns are noise
    unseen = DataLoader(TensorDataset(images[labels >= 40], labels[labels >= 40]), batch_size=50)
    seen = DataLoader(TensorDataset(images[labels < 40], labels[labels < 40]), batch_size=160)
    module, evaluation = TheirModule(), RetrievalEvaluation(ks=(1, 4))
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/recall@1", mode="max")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=40,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,  # theirs, since optimization is automatic
        callbacks=[evaluation, checkpoint, EarlyStopping("val/recall@4", mode="max", patience=40)],
    )
    before = trainer.validate(module, unseen, verbose=False)[0]["val/recall@1"]
    trainer.fit(module, seen, unseen)
    assert module.largest == 32
    assert checkpoint.best_model_score > before + 0.1
