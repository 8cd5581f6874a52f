import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lightning_recall.adaptation.callbacks import ConfusionMatrix

LOADER = DataLoader(torch.zeros(2, 1))
NOTHING = torch.zeros(2, 2, dtype=torch.int64)


class Scored(LightningModule):
    """A module without our base class."""

    def __init__(self, target=NOTHING + 1):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.target = target
        self.confusions = {}

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    test_step = validation_step

    def on_validation_epoch_end(self):
        self.confusions = {"source": torch.tensor([[3, 1], [0, 2]]), "target": self.target}

    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer_of(folder, logger=False, **kwargs):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, callbacks=[ConfusionMatrix()], logger=logger, **quiet, **kwargs)


@pytest.fixture
def drawn(monkeypatch):
    """What the callback draws; the pictures are empty."""
    pictures = []

    def spy(confusions, names):
        pictures.append((confusions, names))
        return Figure(figsize=(1, 1))

    monkeypatch.setattr("lightning_recall.adaptation.callbacks.confusion_matrix.draw_confusion_matrices", spy)
    return pictures


def test_pictures_of_fit_validate_and_test(tmp_path, drawn, capsys):
    trainer = trainer_of(tmp_path, max_epochs=3)
    trainer.fit(Scored(), LOADER, LOADER)
    assert len(drawn) == 1  # not after every epoch
    trainer.validate(Scored(), LOADER)
    trainer.test(Scored(NOTHING), LOADER)
    folder = tmp_path / "runs/version_0"
    assert {path.name for path in folder.iterdir()} == {
        f"confusion_matrix_{name}.png" for name in ("val", "val-1", "test")
    }
    assert f"Confusion matrix: {folder / 'confusion_matrix_test.png'}\n" in capsys.readouterr().out
    assert [list(confusions) for confusions, _ in drawn] == [["source", "target"]] * 2 + [["source"]]
    assert drawn[0][0]["source"].tolist() == [[3, 1], [0, 2]]
    assert drawn[0][1] == ("0", "1")


def test_the_picture_is_logged(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    trainer_of(tmp_path, logger).test(Scored(), LOADER)
    assert imread(f"{logger.log_dir}/confusion_matrix_test.png").shape[0] > 200
    assert EventAccumulator(logger.log_dir).Reload().Tags()["images"] == ["confusion_matrix_test"]


def test_two_processes_write_one_picture(tmp_path):
    trainer_of(tmp_path, devices=2, strategy="ddp_fork").test(Scored(), LOADER)
    assert [path.name for path in tmp_path.rglob("*.png")] == ["confusion_matrix_test.png"]


def test_fast_dev_run_and_runs_without_labels_draw_nothing(tmp_path):
    trainer_of(tmp_path, fast_dev_run=True).test(Scored(), LOADER)
    module = Scored(NOTHING)
    module.on_test_epoch_end = lambda: module.confusions.update(target=NOTHING)
    trainer_of(tmp_path).test(module, LOADER)
    assert not list(tmp_path.rglob("*.png"))


def test_a_module_without_matrices_is_refused(tmp_path):
    class Unscored(Scored):
        def on_test_epoch_end(self):
            del self.confusions

    with pytest.raises(ValueError, match=r"ConfusionMatrix needs Unscored.confusions"):
        trainer_of(tmp_path).test(Unscored(), LOADER)
