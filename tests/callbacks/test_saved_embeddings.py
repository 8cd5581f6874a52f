import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.callbacks import SavedEmbeddings


class Double(pl.LightningModule):
    def predict_step(self, batch, batch_idx):
        return 2 * batch[0]


def test_writes_embeddings_and_labels_in_order(tmp_path, capsys):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[SavedEmbeddings()],
    )  # fmt: skip
    images, labels = torch.randn(10, 3), torch.arange(10)
    trainer.predict(Double(), DataLoader(TensorDataset(images, labels), batch_size=4))
    with np.load(tmp_path / "embeddings.npz") as arrays:
        np.testing.assert_array_equal(arrays["embeddings"], 2 * images.numpy())
        np.testing.assert_array_equal(arrays["labels"], labels.numpy())
    assert "embeddings.npz" in capsys.readouterr().out
