from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.callbacks import EmbeddingWriter, RetrievalEvaluation
from lightning_recall.callbacks.output import file_name, new_folder, output_path, run_folder, save_picture, unused_paths


class OtherLogger(Logger):
    """A logger of an online service, without log_dir."""

    def __init__(self, save_dir, name, version):
        super().__init__()
        self.fields = {"save_dir": save_dir, "name": name, "version": version}

    save_dir = property(lambda self: self.fields["save_dir"])
    name = property(lambda self: self.fields["name"])
    version = property(lambda self: self.fields["version"])

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass


def trainer(folder, logger=False, **kwargs):
    settings = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, **kwargs}
    return Trainer(logger=logger, default_root_dir=folder, enable_checkpointing=False, **settings)


def test_each_run_has_its_folder_with_any_logger(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    cases = (
        (lambda: False, "runs/version_0", "runs/version_1"),
        (lambda: CSVLogger(tmp_path, "csv"), "csv/version_0", "csv/version_1"),
        (lambda: TensorBoardLogger(tmp_path, "board"), "board/version_0", "board/version_1"),
        (lambda: OtherLogger(str(tmp_path / "cloud"), "project", "a1"), "cloud/project/a1", "cloud/project/a1"),
        (lambda: OtherLogger(None, None, 3), "version_3", "version_3"),
        (lambda: OtherLogger(tmp_path / "x", "p", None), "x/p/version_0", "x/p/version_1"),
    )
    for logger, first, second in cases:
        for expected in (first, second):
            run = trainer(tmp_path, logger())
            assert output_path(run, "x.png") == tmp_path / expected / "x.png"
            assert run_folder(run) == tmp_path / expected  # of the same run
            assert (tmp_path / expected).is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.yaml",
        "runs",
        "csv",
        "board",
        "cloud",
        "version_3",
        "x",
    }


def test_a_new_folder_has_the_next_number_and_is_reserved(tmp_path, monkeypatch):
    (tmp_path / "version_9").mkdir()
    (tmp_path / "version_two").mkdir()
    (tmp_path / "version_10").write_text("a file")
    assert new_folder(tmp_path).name == "version_11"
    monkeypatch.setattr(type(tmp_path), "glob", lambda *_: [])  # another run creates version_9 in the meantime
    (tmp_path / "version_0").mkdir()
    assert new_folder(tmp_path).name == "version_1"
    with pytest.raises(OSError, match="version_"):
        new_folder(tmp_path / "version_10")


def test_no_file_is_overwritten(tmp_path):
    assert unused_paths(tmp_path / "a.csv", tmp_path / "b.csv") == [tmp_path / "a.csv", tmp_path / "b.csv"]
    (tmp_path / "b.csv").touch()
    (tmp_path / "a-1.csv").symlink_to(tmp_path / "nowhere")
    assert unused_paths(tmp_path / "a.csv", tmp_path / "b.csv") == [tmp_path / "a-2.csv", tmp_path / "b-2.csv"]
    (tmp_path / "folder").mkdir()
    assert unused_paths(tmp_path / "folder") == [tmp_path / "folder-1"]


def test_an_existing_picture_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "x.png").write_text("mine")
    save_picture(SimpleNamespace(loggers=[]), Figure(), tmp_path / "x.png", "A picture")
    assert (tmp_path / "x.png").read_text() == "mine"
    assert (tmp_path / "x-1.png").stat().st_size > 100
    assert f"A picture: {tmp_path / 'x-1.png'}" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "logged"), [("", "x_1"), ("x", "x")])
def test_a_picture_is_logged_under_a_key(key, logged, tmp_path):
    keys = []
    logger = SimpleNamespace(log_image=lambda key, **_: keys.append(key))
    save_picture(SimpleNamespace(loggers=[logger]), Figure(), tmp_path / "x_1.png", "A picture", key)
    assert keys == [logged]


def test_names_of_dataloaders_become_names_of_files():
    assert file_name("test", "a/b") == "test_a_b"
    assert file_name("charts", "", "Prüfung eins") == "charts_Prüfung eins"
    assert file_name("..", r"c:\d") == ".._c__d"


class Notes(LightningModule):
    """Records the run's folder on each process."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def test_step(self, batch, batch_idx):
        first, again = run_folder(self.trainer), run_folder(self.trainer)
        (self.folder / f"rank_{self.global_rank}").write_text(f"{first} {first == again}")


def test_all_processes_have_the_same_folder(tmp_path):
    for number in range(2):
        trainer(tmp_path, devices=2, strategy="ddp_fork").test(Notes(tmp_path), [0, 0], verbose=False)
        for rank in range(2):
            assert (tmp_path / f"rank_{rank}").read_text() == f"{tmp_path / f'runs/version_{number}'} True"
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_launched_processes_inherit_the_folder(tmp_path):
    run = trainer(tmp_path, devices=2, strategy="ddp_fork")
    chosen = run_folder(run)
    run.test(Notes(tmp_path), [0, 0], verbose=False)
    assert [(tmp_path / f"rank_{rank}").read_text() for rank in range(2)] == [f"{chosen} True"] * 2


class Flatten(LightningModule):
    def forward(self, images):
        return images.flatten(1)

    def test_step(self, batch, batch_idx):
        pass

    validation_step = test_step

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
@pytest.mark.parametrize(("run", "name"), [("test", "Testing"), ("validate", "Validation"), ("predict", "Predicting")])
def test_results_are_below_the_progress_bar(bar, run, name, tmp_path, capsys):
    callbacks = [RetrievalEvaluation(), EmbeddingWriter(), bar()]
    given = trainer(tmp_path, callbacks=callbacks, enable_progress_bar=True)
    loader = DataLoader(TensorDataset(torch.rand(8, 1, 3, 3), torch.arange(8) // 2), batch_size=4)
    options = {"return_predictions": False} if run == "predict" else {"verbose": False}
    for _ in range(2):  # the next run has its own bar
        getattr(given, run)(Flatten(), loader, **options)
        shown = capsys.readouterr().out
        printed = "Embeddings, ids and labels" if run == "predict" else "Retrieval on the"
        assert name in shown
        assert shown.rindex(name) < shown.index(printed)
