from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_recall.cli.last_as_best import LastAsBest

GLYPHS = Path(__file__).parents[2] / "configs" / "glyphs.yaml"
QUICK = ("--trainer.enable_progress_bar", "false", "--trainer.limit_train_batches", 1)
pytestmark = pytest.mark.filterwarnings("ignore:OneCycleLR ends after")


@pytest.mark.parametrize("off", [("--data.val_classes", 0), ("--trainer.limit_val_batches", 0)])
def test_without_validation_the_best_checkpoint_is_the_last(off, command, glyph_folder, in_tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    data = ("--config", GLYPHS, "--data.root", glyph_folder)
    command("fit", *data, *QUICK, *off, "--trainer.max_epochs", 2)
    folder = in_tmp_path / "runs/glyphs/version_0/checkpoints"
    best, last = (torch.load(folder / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert (best["epoch"], last["epoch"], best["global_step"]) == (1, 1, 2)
    assert caplog.text.count("There is no validation to log val/recall@1: best.ckpt is the last epoch.") == 1
    shown = capsys.readouterr().out
    assert "Last validation" not in shown
    assert f"Checkpoint: {folder.relative_to(in_tmp_path)}/best.ckpt" in shown
    command("fit", *data, *QUICK, *off, "--trainer.max_epochs", 3, "--ckpt_path", folder / "best.ckpt")
    resumed = torch.load(in_tmp_path / "runs/glyphs/version_1/checkpoints/best.ckpt", weights_only=True)
    assert (resumed["epoch"], resumed["global_step"]) == (2, 3)


def trainer_with(val_data, monitor):
    checkpoint = ModelCheckpoint(monitor=monitor, mode="max", save_top_k=3)
    data = SimpleNamespace(val_data=val_data)
    settings = {"enable_validation": True, "fast_dev_run": False, "check_val_every_n_epoch": 5}
    return SimpleNamespace(checkpoint_callbacks=[checkpoint], datamodule=data, **settings)


@pytest.mark.parametrize(
    ("val_data", "monitor", "stage", "changes"),
    [
        (None, "val/recall@1", "fit", True),
        (None, "train/loss", "fit", False),
        (None, None, "fit", False),
        (None, "val/recall@1", "test", False),
        ([1], "val/recall@1", "fit", False),
    ],
)
def test_only_monitors_of_a_missing_validation_change(val_data, monitor, stage, changes):
    if monitor is None:
        trainer = trainer_with(val_data, "x")
        trainer.checkpoint_callbacks[0].monitor = None
    else:
        trainer = trainer_with(val_data, monitor)
    LastAsBest().setup(trainer, None, stage)
    (checkpoint,) = trainer.checkpoint_callbacks
    assert (checkpoint.monitor, checkpoint.save_top_k) == ((None, 1) if changes else (monitor, 3))
    assert trainer.check_val_every_n_epoch == (1 if changes else 5)


def test_a_trainer_without_a_data_module_is_taken_at_its_word():
    trainer = trainer_with(None, "val/recall@1")
    trainer.datamodule = None
    LastAsBest().setup(trainer, None, "fit")
    assert trainer.checkpoint_callbacks[0].monitor == "val/recall@1"
