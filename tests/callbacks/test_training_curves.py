from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from matplotlib.image import imread
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_recall.callbacks import TrainingCurves


class Counts(pl.LightningModule):
    """Logs the number of the step as the loss."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        self.log("train/loss", float(self.global_step))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/recall@1", self.current_epoch / 10)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(callback, folder, max_epochs, ckpt_path=None):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=max_epochs, callbacks=[callback],
    )  # fmt: skip
    data = DataLoader(torch.zeros(3, 1))
    trainer.fit(Counts(), data, data, ckpt_path=ckpt_path)
    return trainer


def test_curves_hold_every_step_also_after_a_resume(tmp_path, capsys):
    first = train(TrainingCurves(), tmp_path, max_epochs=2)
    second = TrainingCurves()
    train(second, tmp_path / "again", max_epochs=3, ckpt_path=first.checkpoint_callback.best_model_path)
    assert second.curves() == {
        "train/loss": [(step + 1, float(step)) for step in range(9)],
        "val/recall@1": [(3, 0.0), (6, pytest.approx(0.1)), (9, pytest.approx(0.2))],
    }
    path = tmp_path / "again/runs/version_0/training_curves.png"
    assert imread(path).shape[1] > imread(path).shape[0] > 300
    assert str(path) in capsys.readouterr().out


def test_the_curves_of_another_run_are_not_overwritten(tmp_path):
    folder = tmp_path / "runs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "training_curves.png").write_text("another run's")
    trainer = pl.Trainer(accelerator="cpu", logger=CSVLogger(tmp_path, "runs", 0), enable_progress_bar=False)
    callback = TrainingCurves()
    callback.points = {"train/loss": [(1, 0.5)]}
    callback.on_fit_end(trainer, None)
    assert (folder / "training_curves.png").read_text() == "another run's"
    assert imread(folder / "training_curves-1.png").shape[0] > 300


def test_only_the_requested_scores_are_recorded_and_only_during_training():
    score = torch.tensor(0.25)
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="validate"),
        sanity_checking=False,
        global_step=3,
        callback_metrics={"val/map": score, "val/recall@1": torch.tensor(0.5)},
    )
    callback = TrainingCurves(score_prefix="val/map")
    callback.on_validation_end(trainer, None)
    assert callback.curves() == {}
    trainer.state.fn = "fit"
    callback.on_validation_end(trainer, None)
    score.fill_(0.75)  # by the next validation
    assert callback.curves() == {"val/map": [(3, 0.25)]}


def test_scores_of_several_prefixes():
    keys = ("val/source/accuracy", "val/source/loss", "val/target/accuracy", "val/target/bnm")
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        sanity_checking=False,
        global_step=3,
        callback_metrics={key: torch.tensor(0.5) for key in keys},
    )
    callback = TrainingCurves(score_prefix=["val/source/accuracy", "val/target/accuracy"])
    callback.on_validation_end(trainer, None)
    assert list(callback.curves()) == [keys[0], keys[2]]


@pytest.mark.parametrize("case", ["another process", "no curve", "fast_dev_run"])
def test_nothing_is_drawn(case, tmp_path, monkeypatch):
    trainer = pl.Trainer(
        accelerator="cpu", logger=CSVLogger(tmp_path, "runs", 0), enable_progress_bar=False,
        fast_dev_run=case == "fast_dev_run", default_root_dir=tmp_path,
    )  # fmt: skip
    if case == "another process":
        monkeypatch.setattr(type(trainer), "is_global_zero", False)
    callback = TrainingCurves()
    callback.points = {} if case == "no curve" else {"train/loss": [(1, 0.5)]}
    callback.on_fit_end(trainer, None)
    assert not list(tmp_path.rglob("*.png"))
    assert case != "fast_dev_run" or not list(tmp_path.iterdir())
