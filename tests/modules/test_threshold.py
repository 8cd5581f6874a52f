import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import RecallAtKLoss, RetrievalModule
from lightning_recall.modules import ModuleWithThreshold

THRESHOLD = {"similarity": 0.25, "false_accept_rate": 0.001, "true_accept_rate": 0.9, "split": "val"}


def saved(module, path):
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.validate(module, DataLoader(TensorDataset(torch.rand(4, 3), torch.arange(4) // 2)), verbose=False)
    trainer.save_checkpoint(path)
    return path


def make_module():
    return RetrievalModule(nn.Linear(3, 2), RecallAtKLoss((1,)))


@pytest.mark.parametrize("threshold", [THRESHOLD, None])
def test_checkpoints_hold_the_threshold(threshold, tmp_path):
    module = make_module()
    assert isinstance(module, ModuleWithThreshold)
    assert module.similarity_threshold is None
    module.similarity_threshold = threshold
    path = saved(module, tmp_path / "last.ckpt")
    assert torch.load(path, weights_only=True).get("similarity_threshold") == threshold
    other = make_module()
    other.similarity_threshold = {**THRESHOLD, "similarity": 0.5}
    loaded = RetrievalModule.load_from_checkpoint(path, embedder=nn.Linear(3, 2), loss=RecallAtKLoss((1,)))
    assert loaded.similarity_threshold == threshold
    other.on_load_checkpoint(torch.load(path, weights_only=True))
    assert other.similarity_threshold == threshold  # a threshold of other weights is not kept
