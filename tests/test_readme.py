"""The README: its commands and snippets run, its lines are short and its links exist."""

import configparser
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_recall.callbacks import load_embeddings
from lightning_recall.cli.tools import TOOLS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ALL_COMMANDS = re.findall(r"^lightning-recall .*$", README, re.MULTILINE)
COMMANDS = [line for line in ALL_COMMANDS if "configs/glyphs.yaml" in line or "--model.help" in line]
SEGMENTATION = [line for line in ALL_COMMANDS if "configs/segmentation" in line]
ADAPTATION = [line for line in ALL_COMMANDS if "configs/digits_adaptation.yaml" in line]
AFTER_TRAINING = [line for line in ALL_COMMANDS if line.split()[1] in TOOLS]  # test_docs.py runs these
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]


def test_the_first_snippet_prints_a_loss(capsys):
    exec(SNIPPETS[0], {})
    assert 0 < float(capsys.readouterr().out) < 1


class Unit(nn.Module):
    def forward(self, embeddings):
        return nn.functional.normalize(embeddings, dim=1)


def test_the_plug_in_snippet_trains():
    names = {}
    exec(SNIPPETS[1], names)
    module = names["YourModule"](nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), Unit()))
    loss = module.training_step((torch.randn(200, 6), torch.arange(200) // 4), 0)
    loss.backward()
    assert module.encoder[0].weight.grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore:OneCycleLR ends after")
def test_commands_on_glyphs_run_in_order(command, glyph_folder, monkeypatch, in_tmp_path, capsys):
    (in_tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp_path))
    (in_tmp_path / "lightning_recall").symlink_to(glyph_folder)
    assert len(COMMANDS) == 5
    quiet = ("--trainer.enable_progress_bar", "false")
    short = ("--trainer.max_epochs", 5, "--trainer.limit_train_batches", 1)
    for line in COMMANDS:
        args = shlex.split(line)[1:]
        if "--model.help" in args:
            with pytest.raises(SystemExit) as stopped:
                command(*args)
            assert stopped.value.code == 0
        else:
            command(*args, *quiet, *(short if args[0] == "fit" else ()))
    assert "raw pixels" in capsys.readouterr().out
    names = {}
    exec(SNIPPETS[2], names)
    assert names["module"].embedder(torch.zeros(2, 1, 32, 32)).shape == (2, 128)
    saved = next(path.parent for path in in_tmp_path.glob("runs/glyphs/*/embeddings/about.json"))
    assert len(load_embeddings(saved)["labels"].unique()) == 257


def test_commands_for_your_images_are_those_of_the_how_to():
    """test_docs.py runs these."""
    others = [*COMMANDS, *SEGMENTATION, *ADAPTATION, *AFTER_TRAINING]
    lines = [line for line in ALL_COMMANDS if line not in others]
    how_to = (ROOT / "docs" / "how_to" / "own_data.md").read_text()
    assert lines == re.findall(r"^lightning-recall .*$", how_to, re.MULTILINE)[:4]


def test_the_segmentation_snippet_has_a_gradient():
    names = {}
    exec(SNIPPETS[3], names)
    assert names["logits"].grad.abs().max() > 0


def test_commands_on_scenes_run_in_order(command, in_tmp_path, capsys):
    (in_tmp_path / "configs").symlink_to(ROOT / "configs")
    assert [line.split()[1] for line in SEGMENTATION] == ["fit", "test"]
    short = ("--trainer.max_epochs", 3, "--trainer.limit_train_batches", 1, "--trainer.limit_val_batches", 1)
    for line in SEGMENTATION:
        args = shlex.split(line)[1:]
        command(*args, "--trainer.enable_progress_bar", "false", *(short if args[0] == "fit" else ()))
    assert "pavement" in capsys.readouterr().out
    assert list(in_tmp_path.glob("runs/scenes/version_1/segmented_images*.png"))


def test_commands_on_drawn_digits_run_in_order(command, in_tmp_path, capsys):
    (in_tmp_path / "configs").symlink_to(ROOT / "configs")
    assert [line.split()[1] for line in ADAPTATION] == ["fit", "test"]
    small = ("--data.num_train", 200, "--data.num_test", 50, "--trainer.enable_progress_bar", "false")
    short = ("--trainer.max_epochs", 1, "--trainer.check_val_every_n_epoch", 1)
    for line in ADAPTATION:
        args = shlex.split(line)[1:]
        command(*args, *small, *(short if args[0] == "fit" else ()))
    assert "target" in capsys.readouterr().out
    assert list(in_tmp_path.glob("runs/digits_adaptation/version_1/confusion_matrix*.png"))


def test_every_snippet_is_run():
    assert len(SNIPPETS) == 4


def test_lines_are_short():
    assert [line for line in README.splitlines() if len(line) > 160 and not line.startswith("|")] == []


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_exist(link):
    assert link.startswith("https://") or (ROOT / link).exists()


def test_make_targets_and_extras_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert len(named) >= 5
    assert named <= targets
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = set(re.findall(r"-e \"\.\[(\w+)\]\"", text))
    assert extras <= set(config["options.extras_require"])
