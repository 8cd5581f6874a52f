import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lightning_recall import RetrievalModule
from lightning_recall.callbacks import load_embeddings
from lightning_recall.cli import main
from lightning_recall.data import ChunkLoader

GLYPHS = Path(__file__).parent.parent / "configs" / "glyphs.yaml"
pytestmark = pytest.mark.filterwarnings("ignore:OneCycleLR ends after")  # short trainings of a long schedule
QUICK = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")


def small_config(folder, glyph_folder):
    """configs/glyphs.yaml with a quarter of the data and eight epochs."""
    config = yaml.safe_load(GLYPHS.read_text())
    config["data"]["init_args"]["root"] = str(glyph_folder)
    config["model"]["init_args"]["lr_scheduler"]["init_args"]["total_steps"] = 160
    config["trainer"] |= {"max_epochs": 8, "check_val_every_n_epoch": 4, "accelerator": "cpu", "devices": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory, glyph_folder):
    """The folder of one short training, for all tests that need its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["lightning-recall"])
        config = small_config(folder, glyph_folder)
        main(["fit", "--config", str(config), "--model.loss.k_temperature", "0.9", *QUICK])
    return folder


def recall_of_pixels(glyph_folder):
    """Recall@1 of the raw pixels of the test characters."""
    with np.load(next(glyph_folder.iterdir())) as arrays:
        images, labels = arrays["images"].reshape(len(arrays["images"]), -1).astype(float), arrays["labels"]
    _, number = np.unique(labels, return_inverse=True)
    images, labels = images[number % 2 == 0], labels[number % 2 == 0]
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    similarities = images @ images.T
    np.fill_diagonal(similarities, -np.inf)
    return (labels[similarities.argmax(1)] == labels).mean()


def best(run):
    return run / "runs" / "glyphs" / "version_0" / "checkpoints" / "best.ckpt"


def last_scores(folder):
    """Test scores of the newest run."""
    newest = max(folder.glob("runs/glyphs/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open() as file:
        return {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}


def test_fit_leaves_checkpoint_metrics_settings_and_picture(run):
    folder = best(run).parent.parent
    assert {path.name for path in folder.iterdir()} >= {
        "checkpoints",
        "metrics.csv",
        "config.yaml",
        "training_curves.png",
    }
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["model"]["init_args"]["loss"]["init_args"]["k_temperature"] == 0.9


def test_the_saved_settings_run_again_and_chunk_size_is_set_once(run, command, monkeypatch):
    chunk_sizes, init = [], ChunkLoader.__init__

    def spy(self, dataset, sampler, chunk_size, *args, **kwargs):
        chunk_sizes.append(chunk_size)
        init(self, dataset, sampler, chunk_size, *args, **kwargs)

    monkeypatch.setattr(ChunkLoader, "__init__", spy)
    saved = best(run).parent.parent / "config.yaml"
    command("fit", "--config", saved, "--model.chunk_size", 100, "--trainer.fast_dev_run", 1)
    assert chunk_sizes == [100]


def test_test_in_a_new_process_scores_the_trained_network(run, glyph_folder):
    result = subprocess.run(
        [sys.executable, "-m", "lightning_recall", "test", "--config", "config.yaml", "--ckpt_path", best(run)],
        capture_output=True, text=True, check=True, cwd=run,
    )  # fmt: skip
    shown = result.stdout
    assert all(row in shown for row in ("raw pixels", "before training", "model", "R@8", "retrieved_images.png"))
    scores = last_scores(run)
    assert scores["test/pixels/recall@1"] == pytest.approx(recall_of_pixels(glyph_folder), abs=1e-3)
    assert scores["test/untrained/recall@1"] < scores["test/pixels/recall@1"] + 0.05
    assert scores["test/recall@1"] > scores["test/pixels/recall@1"] + 0.15


def test_a_checkpoint_reloads_in_plain_python(run):
    code = (
        "import sys, torch, lightning_recall\n"
        "module = lightning_recall.RetrievalModule.load_from_checkpoint(sys.argv[1]).eval()\n"
        "assert module.loss.k_temperature == 0.9 and module.chunk_size == 256\n"
        "weights = torch.load(sys.argv[1], weights_only=True)['state_dict']\n"
        "assert all(torch.equal(v, weights[k]) for k, v in module.state_dict().items())\n"
        "print(tuple(module(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)).shape))"
    )
    result = subprocess.run([sys.executable, "-c", code, best(run)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(2, 128)"


def test_given_settings_win_over_those_of_the_checkpoint(run, command, glyph_folder, in_tmp_path):
    config = small_config(in_tmp_path, glyph_folder)
    command("validate", "--config", config, "--ckpt_path", best(run), "--model.loss.k_temperature", 3, *QUICK)
    settings = yaml.safe_load((in_tmp_path / "runs/glyphs/version_0/config.yaml").read_text())
    assert settings["model"]["init_args"]["loss"]["init_args"]["k_temperature"] == 3


def test_fit_resumes(run, command, glyph_folder, in_tmp_path):
    config = small_config(in_tmp_path, glyph_folder)
    last = best(run).with_name("last.ckpt")
    command("fit", "--config", config, "--ckpt_path", last, "--trainer.max_epochs", 12, *QUICK)
    first = torch.load(last, weights_only=True)
    resumed = torch.load(in_tmp_path / "runs/glyphs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert (resumed["epoch"], resumed["global_step"]) == (11, first["global_step"] // 2 * 3)
    with pytest.raises(ValueError, match="ends after total_steps=160"):
        command("fit", "--config", config, "--ckpt_path", last, "--trainer.max_epochs", 40, *QUICK)


def test_a_new_training_starts_from_weights(run, command, glyph_folder, in_tmp_path):
    config = small_config(in_tmp_path, glyph_folder)
    other = ("--model.optimizer.lr", 0.5, "--model.lr_scheduler", "null", "--trainer.limit_train_batches", 1)
    with pytest.raises(ValueError, match="scheduler is OneCycleLR, but now none"):
        command("fit", "--config", config, "--ckpt_path", best(run), *other, *QUICK)
    still = ("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", 0, "--model.lr_scheduler", "null")
    short = ("--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--trainer.limit_val_batches", 1)
    command("fit", "--config", config, "--weights", best(run), *still, *short, *QUICK)
    folder = in_tmp_path / "runs/glyphs/version_1"
    first, second = (torch.load(path, weights_only=True) for path in (best(run), folder / "checkpoints/last.ckpt"))
    assert (second["global_step"], second["optimizer_states"][0]["param_groups"][0]["lr"]) == (1, 0)
    name = "embedder.projection.0.weight"
    assert torch.equal(second["state_dict"][name], first["state_dict"][name])
    assert yaml.safe_load((folder / "config.yaml").read_text())["weights"] == str(best(run))


def test_predict_writes_embeddings(run, command, glyph_folder, in_tmp_path):
    command("predict", "--config", GLYPHS, "--data.root", glyph_folder, "--ckpt_path", best(run), *QUICK)
    saved = load_embeddings(in_tmp_path / "runs/glyphs/version_0/embeddings")
    assert saved["embeddings"].shape == (len(saved["labels"]), 128)
    assert saved["ids"].tolist() == list(range(len(saved["labels"])))
    assert len(saved["labels"].unique()) == 257


def test_a_checkpoint_that_is_not_there_is_refused_at_once(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("test", "--config", GLYPHS, "--ckpt_path", "nofile.ckpt")
    assert stopped.value.code == 2
    assert "nofile.ckpt: there is no such file" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_two_processes_fit_and_test(command, glyph_folder, in_tmp_path):
    two = ("--trainer.devices", 2, "--trainer.strategy", "ddp_fork", "--trainer.accelerator", "cpu", *QUICK)
    short = ("--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2, "--trainer.check_val_every_n_epoch", 1)
    command("fit", "--config", GLYPHS, "--data.root", glyph_folder, *two, *short)
    checkpoint = in_tmp_path / "runs/glyphs/version_0/checkpoints/best.ckpt"
    command("test", "--config", GLYPHS, "--data.root", glyph_folder, "--ckpt_path", checkpoint, *two)
    assert last_scores(in_tmp_path)["test/pixels/recall@1"] == pytest.approx(recall_of_pixels(glyph_folder), abs=1e-3)


def test_every_part_is_swapped_by_class_path(command, glyph_folder, in_tmp_path):
    command(
        *("fit", "--config", GLYPHS, "--data.root", glyph_folder, "--data.batch_size", 16, *QUICK),
        *("--model.embedder.backbone", "resnet18", "--model.embedder.pretrained", "false", "--model.chunk_size", 8),
        *("--model.mixup", "SimilarityMixup", "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", 0.1),
        *("--model.lr_scheduler", "torch.optim.lr_scheduler.ConstantLR", "--trainer.limit_train_batches", 1),
        *("--trainer.max_epochs", 1, "--trainer.limit_val_batches", 1, "--trainer.check_val_every_n_epoch", 1),
    )
    settings = yaml.safe_load((in_tmp_path / "runs/glyphs/version_0/config.yaml").read_text())["model"]["init_args"]
    assert settings["mixup"]["class_path"] == "lightning_recall.SimilarityMixup"
    again = RetrievalModule.load_from_checkpoint(in_tmp_path / "runs/glyphs/version_0/checkpoints/last.ckpt")
    assert type(again.embedder.backbone).__name__ == "ResNet"


def settings_of(command, capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        command("fit", *args, "--print_config")
    assert stopped.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


MINIMAL = ("--model", "RetrievalModule", "--model.embedder", "ImageEmbedder", "--model.loss", "RecallAtKLoss")


@pytest.mark.parametrize("start", [("--config", GLYPHS), MINIMAL])
def test_a_new_class_keeps_no_settings_of_a_default(start, command, capsys):
    settings = settings_of(command, capsys, *start, "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", 0.1)
    optimizer = settings["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD"
    assert optimizer["init_args"]["lr"] == 0.1
    assert optimizer["init_args"]["weight_decay"] == 0  # AdamW's own would be 0.01


@pytest.mark.parametrize(
    "option",
    ["--model.chunk_sise", "--data.batch_sise", "--trainer.max_epocks", "--model.loss.k_temprature", "--modle.x"],
)
def test_a_misspelt_option_names_itself(option, command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("fit", "--config", GLYPHS, option, 3)
    assert stopped.value.code == 2
    assert option.rsplit(".", 1)[-1].removeprefix("--") in capsys.readouterr().err


def test_a_value_of_the_wrong_kind_is_refused(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("fit", "--config", GLYPHS, "--model.chunk_size", "many")
    assert stopped.value.code == 2
    assert "chunk_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--help",), ["fit", "validate", "test", "predict", "Recall@k"]),
        (("fit", "--help"), ["usage: lightning-recall fit --config FILE", "RetrievalModule", "GlyphsDataModule"]),
        (
            ("fit", "--help"),
            [
                *("--data.root", "--data.transforms.size", "--model.embedder.backbone", "--model.embedder.pretrained"),
                *("--model.optimizer.lr", "--evaluation.scores", "--evaluation.baselines"),
            ],
        ),
        (("fit", "--model.help", "RetrievalModule"), ["RecallAtKLoss", "of other packages", "chunk_size"]),
        (("fit", "--data.help", "GlyphsDataModule"), ["--data.batch_size", "--data.augment", "--data.val_classes"]),
    ],
)
def test_help_is_readable(args, words, command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(*args)
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(word in shown for word in words)
    assert "torch.nn." not in shown
    assert len(shown.splitlines()) < 480


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoints_of_another_process_are_not_guessed(name, command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("test", "--config", GLYPHS, "--ckpt_path", name)
    assert stopped.value.code == 2
    assert "pass the path of a file" in capsys.readouterr().err


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_an_output_folder_that_cannot_be_written_is_refused_at_once(subcommand, command, capsys, in_tmp_path):
    (in_tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(SystemExit) as stopped:
        command(subcommand, "--config", GLYPHS)
    assert stopped.value.code == 2
    assert "Cannot write to" in capsys.readouterr().err
