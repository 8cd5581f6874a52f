import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.callbacks import EvaluationCharts, RetrievalEvaluation


class Flatten(pl.LightningModule):
    def forward(self, images):
        return images.flatten(1)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        pass


def test_each_test_set_has_its_own_charts(tmp_path, capsys):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False,
        callbacks=[EvaluationCharts(), RetrievalEvaluation()],
    )  # fmt: skip
    loader = DataLoader(TensorDataset(torch.rand(24, 1, 3, 3), torch.arange(24) // 3), batch_size=10)
    trainer.test(Flatten(), {"a": loader, "b": loader}, verbose=False)
    names = {f"{name}_{part}.png" for name in ("similarities", "recall_over_k", "embedding_map") for part in "ab"}
    assert {path.name for path in tmp_path.glob("runs/version_0/*.png")} == names
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)


def test_a_missing_evaluation_is_an_error():
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=[EvaluationCharts()]
    )
    with pytest.raises(ValueError, match="EvaluationCharts needs RetrievalEvaluation"):
        trainer.test(Flatten(), DataLoader(TensorDataset(torch.rand(8, 4), torch.arange(8) // 2)), verbose=False)
