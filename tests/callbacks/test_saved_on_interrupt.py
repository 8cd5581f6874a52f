import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall import RecallAtKLoss, RetrievalModule
from lightning_recall.callbacks import SavedOnInterrupt

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no", "ignore:.* is meant for embeddings of length 1"
)


class Press(Callback):
    """Presses Ctrl-C in a batch, once or twice."""

    def __init__(self, step, times=1, rank=0):
        self.step, self.times, self.rank = step, times, rank

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)


def fit(folder, *callbacks, ckpt_path=None, **kwargs):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(48, 6), torch.arange(48) % 6)
    module = RetrievalModule(nn.Linear(6, 4), RecallAtKLoss((1, 2), rank_temperature=1.0))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **kwargs,
    )
    trainer.fit(module, DataLoader(data, batch_size=12), ckpt_path=ckpt_path)
    return module


def test_a_training_goes_on_from_where_it_was_interrupted(tmp_path, capsys):
    handler = signal.getsignal(signal.SIGINT)
    whole = fit(tmp_path, devices=1)
    with pytest.raises(SystemExit):
        fit(tmp_path, SavedOnInterrupt(), Press(3), devices=1)  # the last of an epoch's four batches
    saved = tmp_path / "checkpoints" / "interrupted.ckpt"
    shown = "".join(capsys.readouterr().out.split())
    assert f"Savedafterstep4.Togoon,addtothesamecommand:--ckpt_path{saved}" in shown
    assert torch.load(saved, weights_only=True)["global_step"] == 4
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored when it is interrupted
    resumed = fit(tmp_path, SavedOnInterrupt(), ckpt_path=saved, devices=1)
    assert torch.equal(resumed.embedder.weight, whole.embedder.weight)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_time_ends_at_once(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        fit(tmp_path, SavedOnInterrupt(), Press(1, times=2), devices=1)
    assert not (tmp_path / "checkpoints").exists()
    signal.signal(signal.SIGINT, handler)


TWO = """
import torch
from tests_of import fit, Press
from lightning_recall.callbacks import SavedOnInterrupt
from pathlib import Path
torch.set_num_threads(1)
if __name__ == "__main__":
    fit(Path("."), SavedOnInterrupt(), Press(2, rank=1), devices=2, strategy="ddp_fork")
"""


def test_two_processes_end_after_the_same_batch(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    (tmp_path / "tests_of.py").symlink_to(__file__)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "two.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert ended.returncode != 0
    assert "Saved after step 3." in ended.stdout
    assert torch.load(tmp_path / "checkpoints/interrupted.ckpt", weights_only=True)["global_step"] == 3
