import functools
import logging
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelCheckpoint, ModelSummary

from lightning_recall.callbacks import InterruptCheckpoint, RunSummary
from lightning_recall.cli import command as command_module
from lightning_recall.cli.command import RecallCLI
from lightning_recall.models import ImageEmbedder

CONFIGS = Path(__file__).parents[2] / "configs"
GLYPHS, IMAGES = CONFIGS / "glyphs.yaml", CONFIGS / "your_images.yaml"
QUICK = ("--trainer.enable_progress_bar", "false", "--trainer.limit_train_batches", 1, "--trainer.limit_val_batches", 0)
pytestmark = [
    pytest.mark.filterwarnings("ignore:OneCycleLR ends after"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_without_a_logger_every_run_has_a_folder_and_a_users_file_stays(command, glyph_folder, in_tmp_path, capsys):
    (in_tmp_path / "config.yaml").write_text("mine: true")
    for number, seed in enumerate((5, 6)):
        command(
            *("fit", "--config", GLYPHS, "--data.root", glyph_folder, "--seed_everything", seed, *QUICK),
            *("--trainer.logger", "false", "--trainer.max_epochs", 1, "--trainer.callbacks", "ModelCheckpoint"),
            *("--trainer.check_val_every_n_epoch", 1),
        )
        run = in_tmp_path / "runs" / f"version_{number}"
        assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == seed
        assert len(list((run / "checkpoints").glob("*.ckpt"))) == 1
        assert f"Metrics and settings: {run}" in capsys.readouterr().out
    assert (in_tmp_path / "config.yaml").read_text() == "mine: true"
    assert {name for name in files(in_tmp_path) if not name.startswith("runs/")} == {"config.yaml"}


@pytest.mark.filterwarnings("ignore:Experiment logs directory .* is not empty")
def test_settings_of_a_run_with_a_used_version_stand_beside_the_others(command, glyph_folder, in_tmp_path, capsys):
    folder = in_tmp_path / "runs/glyphs/version_7"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("of: another run")
    logger = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs", "--trainer.logger.name", "glyphs")
    command(
        *("fit", "--config", GLYPHS, "--data.root", glyph_folder, *QUICK, "--trainer.max_epochs", 1),
        *(*logger, "--trainer.logger.version", 7, "--trainer.callbacks", "TrainingCurves"),
    )
    assert (folder / "config.yaml").read_text() == "of: another run"
    assert "class_path" in (folder / "config-1.yaml").read_text()
    assert (
        "Settings (config.yaml of another run was kept): runs/glyphs/version_7/config-1.yaml" in capsys.readouterr().out
    )


def test_metrics_of_a_run_with_a_used_version_are_not_deleted(command, glyph_folder, in_tmp_path, capsys):
    folder = in_tmp_path / "runs/glyphs/version_7"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("of another run")
    with pytest.raises(SystemExit) as stopped:
        command(
            *("fit", "--config", GLYPHS, "--data.root", glyph_folder, *QUICK, "--trainer.max_epochs", 1),
            *("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs", "--trainer.logger.name", "glyphs"),
            *("--trainer.logger.version", 7),
        )
    assert stopped.value.code == 2
    assert "runs/glyphs/version_7/metrics.csv holds the metrics of another run" in capsys.readouterr().err
    assert files(in_tmp_path) == {"runs/glyphs/version_7/metrics.csv"}
    assert (folder / "metrics.csv").read_text() == "of another run"


def test_a_trial_leaves_nothing(command, glyph_folder, in_tmp_path):
    command(
        *("predict", "--config", GLYPHS, "--data.root", glyph_folder, "--trainer.fast_dev_run", 1),
        *("--trainer.enable_progress_bar", "false"),
    )
    assert files(in_tmp_path) == set()


def test_every_run_has_the_callbacks_and_defaults_of_the_command(command, glyph_folder, monkeypatch):
    made = []
    monkeypatch.setattr(RecallCLI, "run_subcommand", lambda self, _: made.append(self))
    settings = ("--trainer.logger", "false", "--model.chunk_size", "auto")
    command("fit", "--config", GLYPHS, "--data.root", glyph_folder, *settings)
    (cli,) = made
    kinds = [type(callback) for callback in cli.trainer.callbacks]
    assert kinds.count(RunSummary) == kinds.count(InterruptCheckpoint) == 1
    assert ModelSummary not in {base for kind in kinds for base in kind.__mro__}
    assert (cli.model.chunk_size, cli.datamodule.chunk_size) == ("auto", 512)
    for subcommand, option in (("test", "verbose"), ("validate", "verbose"), ("predict", "return_predictions")):
        assert (
            cli._subcommand_parsers[subcommand].get_default(option) is False
        )  # callbacks print and write these results


@pytest.mark.parametrize(
    ("callbacks", "given", "downloads"),
    [
        ([], {"ckpt_path": "s3://a.ckpt"}, False),
        (None, {"ckpt_path": "s3://a.ckpt"}, False),
        (Namespace(init_args=Namespace(ks=[1])), {"ckpt_path": "s3://a.ckpt"}, False),
        ([Namespace(init_args=Namespace(baselines=["untrained"]))], {"ckpt_path": "s3://a.ckpt"}, True),
        (Namespace(init_args=Namespace(baselines=["untrained"])), {"ckpt_path": "s3://a.ckpt"}, True),
        ([], {}, True),
        ([Namespace(init_args=Namespace(baselines=["untrained"]))], {"weights": __file__}, False),
    ],
)
def test_pretrained_weights_are_fetched_where_they_are_used(callbacks, given, downloads, caplog):
    embedder, config = evaluated(callbacks, given)
    with caplog.at_level(logging.INFO):
        RecallCLI.before_instantiate_classes(SimpleNamespace(config=Namespace(subcommand="test", test=config)))
    assert embedder.init_args.pretrained is downloads
    assert ("uses its initial weights" in caplog.text) == (not given)


@pytest.mark.parametrize("subcommand", ["fit", "validate", "predict"])
def test_only_a_test_scores_what_a_checkpoint_started_from(subcommand):
    baselines = [Namespace(init_args=Namespace(baselines=["untrained"]))]
    embedder, config = evaluated(baselines, {"ckpt_path": "s3://a.ckpt"})
    RecallCLI.before_instantiate_classes(
        SimpleNamespace(config=Namespace(subcommand=subcommand, **{subcommand: config}))
    )
    assert embedder.init_args.pretrained is False


def evaluated(callbacks, given):
    """Settings of an embedder, and of a run with it."""
    embedder = Namespace(init_args=Namespace(backbone="resnet18", pretrained=True))
    config = Namespace(trainer=Namespace(callbacks=callbacks), model=Namespace(init_args=Namespace(embedder=embedder)))
    config.update(Namespace(ckpt_path=None, weights=None))
    config.update(Namespace(**given))
    return embedder, config


@pytest.mark.parametrize(
    ("subcommand", "weights_only", "message"),
    [
        ("fit", False, "its training cannot be resumed"),
        ("test", False, None),
        ("test", None, "holds Python objects"),
        ("fit", None, "holds Python objects"),
    ],
)
def test_a_checkpoint_is_checked_for_its_subcommand(subcommand, weights_only, message, tmp_path):
    path = tmp_path / "some.ckpt"
    weights = {"state_dict": {"a": torch.ones(1)}, "pytorch-lightning_version": "2.6.0"}
    torch.save({**weights, "object": torch.nn.Linear(1, 1)}, path)  # and no states of optimizers
    config = Namespace(ckpt_path=str(path), weights=None, weights_only=weights_only, trainer=Namespace(callbacks=[]))
    config.model = Namespace(init_args=Namespace())
    cli = SimpleNamespace(config=Namespace({"subcommand": subcommand, subcommand: config}))
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        RecallCLI.before_instantiate_classes(cli)


@pytest.mark.parametrize("url", ["https://example.com/a.ckpt", "s3://bucket/a.ckpt"])
@pytest.mark.parametrize(("given", "used"), [(None, True), (False, False), (True, True)])
def test_a_remote_checkpoint_is_not_unpickled_by_default(url, given, used):
    _, config = evaluated([], {"ckpt_path": url, "weights_only": given})
    RecallCLI.before_instantiate_classes(SimpleNamespace(config=Namespace(subcommand="test", test=config)))
    assert config.weights_only is used


@pytest.mark.parametrize("loading", [True, False])
def test_only_weights_that_do_not_fit_are_an_error_of_the_checkpoint(loading, monkeypatch):
    def fails(*_):
        raise RuntimeError("Error(s) in loading state_dict for Net:\n\tMissing a" if loading else "a defect")

    monkeypatch.setattr(command_module.LightningCLI, "_run_subcommand", fails)
    cli = object.__new__(RecallCLI)
    cli.config = Namespace(test=Namespace(ckpt_path="some.ckpt"))
    expected = ValueError if loading else RuntimeError
    with pytest.raises(expected, match="some.ckpt holds weights that do not match" if loading else "a defect"):
        cli.run_subcommand("test")


def test_objects_in_a_remote_checkpoint_are_an_error_of_the_checkpoint(monkeypatch):
    def fails(*_):
        raise UnpicklingError("Weights only load failed.")

    monkeypatch.setattr(command_module.LightningCLI, "_run_subcommand", fails)
    cli = object.__new__(RecallCLI)
    cli.config = Namespace(test=Namespace(ckpt_path="https://example.com/a.ckpt"))
    with pytest.raises(ValueError, match="holds Python objects, which are not loaded"):
        cli.run_subcommand("test")


def test_an_output_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_recall.cli.command.os.access", lambda *_: False)  # tests may run as root

    def error(message):
        raise SystemExit(message)

    trainer = SimpleNamespace(log_dir=None, default_root_dir=tmp_path / "new")
    with pytest.raises(SystemExit, match=f"Cannot write to {tmp_path}/new: {tmp_path} is not a writable folder"):
        RecallCLI.before_predict(SimpleNamespace(trainer=trainer, parser=SimpleNamespace(error=error)))


def test_a_trial_saves_no_last_checkpoint(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, save_last=True)
    trainer = SimpleNamespace(
        log_dir=tmp_path, default_root_dir=tmp_path, fast_dev_run=1, checkpoint_callbacks=[checkpoints]
    )
    RecallCLI.before_fit(SimpleNamespace(trainer=trainer))
    assert not checkpoints.save_last


@pytest.mark.parametrize("finished", ["after_fit", "after_validate", "after_test"])
def test_a_run_ends_with_its_folder(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_module, "run_folder", lambda _: tmp_path)
    files = SimpleNamespace(best_model_path="best.ckpt", last_model_path="last.ckpt")
    trainer = SimpleNamespace(checkpoint_callback=files, is_global_zero=True, fast_dev_run=False)
    cli = object.__new__(RecallCLI)
    cli.trainer = trainer
    getattr(cli, finished)()
    shown = capsys.readouterr().out
    assert f"Metrics and settings: {tmp_path}" in shown
    assert ("Checkpoint: best.ckpt" in shown) == (finished == "after_fit")


def refuse_to_build(monkeypatch):
    @functools.wraps(ImageEmbedder.__init__)  # the parser needs the arguments
    def fail(*_, **__):
        raise AssertionError("the model is built before the data is checked")

    monkeypatch.setattr("lightning_recall.models.ImageEmbedder.__init__", fail)


def test_a_wrong_folder_shows_before_the_model_is_built(command, in_tmp_path, monkeypatch):
    refuse_to_build(monkeypatch)
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        command("fit", "--config", IMAGES, "--data.root", "nowhere")
    (in_tmp_path / "photos" / "empty").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"photos/empty holds no image"):
        command("fit", "--config", IMAGES, "--data.root", "photos")


@pytest.fixture
def loaded_weights(monkeypatch):
    """The names of the pretrained networks that timm is asked for; none is loaded."""
    create, names = timm.create_model, []

    def record(name, pretrained=False, **kwargs):
        names.extend([name] * pretrained)
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", record)
    return names


PHOTOS_OF_EACH_TASK = [
    (IMAGES, ()),
    (CONFIGS / "segmentation" / "your_masks.yaml", ("--model.num_classes", 3)),
    (
        CONFIGS / "adaptation" / "your_domains.yaml",
        ("--model.num_classes", 3, "--data.source", "a", "--data.target", "b"),
    ),
]


@pytest.mark.parametrize(("config", "options"), PHOTOS_OF_EACH_TASK, ids=["retrieval", "segmentation", "adaptation"])
@pytest.mark.parametrize("is_empty", [True, False])
def test_data_are_looked_at_before_weights_are_fetched(is_empty, config, options, command, in_tmp_path, loaded_weights):
    if is_empty:
        (in_tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="photos"):
        command("fit", "--config", config, "--data.root", "photos", *options)
    assert loaded_weights == []


def test_with_data_weights_are_fetched(command, small_data, loaded_weights, monkeypatch):
    monkeypatch.setattr(RecallCLI, "run_subcommand", lambda *_: None)
    command("fit", "--config", IMAGES, "--data.root", small_data("image_folder"))
    assert loaded_weights == ["resnet50.tv_in1k"]


def test_data_that_are_made_before_they_are_read_need_no_folder_yet(command, in_tmp_path, monkeypatch):
    monkeypatch.setattr(RecallCLI, "run_subcommand", lambda *_: None)
    command("fit", "--config", GLYPHS, "--data.root", "not_drawn_yet")
    assert files(in_tmp_path) == set()


def checkpoint_with_weights(command, small_data, tmp_path, *options):
    """Trains one step from a weights file and deletes the file; returns the options and the checkpoint."""
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), weights)
    settings = ("--config", IMAGES, "--data.root", small_data("image_folder"), "--data.num_workers", 0, *options)
    settings += ("--data.batch_size", 16, "--model.embedder.backbone", "resnet10t", "--data.transforms.size", 32)
    settings += ("--model.embedder.pretrained", weights, *QUICK, "--trainer.limit_test_batches", 1)
    command("fit", *settings, "--trainer.max_epochs", 1)
    (checkpoint,) = (tmp_path / "runs").rglob("last.ckpt")
    return settings, checkpoint, weights


def test_a_baseline_whose_weights_are_gone_does_not_stop_a_test(command, small_data, tmp_path, capsys):
    settings, checkpoint, weights = checkpoint_with_weights(command, small_data, tmp_path)
    scored = ("--ckpt_path", checkpoint, "--evaluation.baselines", "true")
    command("test", *settings, *scored)
    assert "pretrained features" in capsys.readouterr().out
    weights.unlink()
    with pytest.warns(UserWarning, match=r"The baselines are omitted: .*no such file: .*weights.pth"):
        command("test", *settings, *scored)
    shown = capsys.readouterr().out
    assert "pretrained features" not in shown
    assert "model" in shown
    with pytest.raises(ValueError, match="no such file"):
        command("test", *settings, "--evaluation.baselines", "true")  # without a checkpoint, nothing else to test
    omitted = pytest.warns(UserWarning, match="The baselines are omitted")
    with omitted, pytest.raises(ValueError, match="embedding_dim must be"):
        command("test", *settings, *scored, "--model.embedder.embedding_dim", 0)
