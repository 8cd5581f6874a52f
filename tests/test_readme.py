"""The README's commands and snippets, run."""

import re
import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from lightning_recall.callbacks import load_embeddings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ALL_COMMANDS = re.findall(r"^lightning-recall .*$", README, re.MULTILINE)
COMMANDS = [line for line in ALL_COMMANDS if "FOLDER" not in line and "TABLE" not in line]
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.filterwarnings("ignore:OneCycleLR ends after")
def test_the_quickstart_and_the_changes_run(command, glyph_folder, monkeypatch, in_tmp_path, capsys):
    (in_tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp_path))
    (in_tmp_path / "lightning_recall").symlink_to(glyph_folder)
    assert len(COMMANDS) == 8
    names = {}
    short = ("--trainer.max_epochs", 5, "--trainer.limit_train_batches", 1, "--trainer.enable_progress_bar", "false")
    for line in COMMANDS:
        args = shlex.split(line)[1:]
        if "--model.help" in args:
            with pytest.raises(SystemExit) as stopped:
                command(*args)
            assert stopped.value.code == 0
        else:
            command(*args, *(short if args[0] == "fit" else ()))
    exec(SNIPPETS[0], names)
    embedder = names["module"].embedder
    assert embedder(torch.zeros(2, 1, 32, 32)).shape == (2, 128)
    assert "raw pixels" in capsys.readouterr().out
    checkpoint = in_tmp_path / "runs/glyphs/version_0/checkpoints/best.ckpt"
    predict = f"predict --config configs/glyphs.yaml --ckpt_path {checkpoint}"
    assert predict.replace(str(checkpoint), "FILE") in README
    command(*predict.split(), *short[-2:])
    saved = next(path.parent for path in in_tmp_path.glob("runs/glyphs/*/embeddings/about.json"))
    assert len(load_embeddings(saved)["labels"].unique()) == 257


def test_the_metric_snippet_scores(capsys):
    exec(SNIPPETS[3], {})
    assert "'mrr': tensor(" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.* lists .* images of .* classes, where the published split")
def test_commands_for_images_run(command, small_data, in_tmp_path):
    (in_tmp_path / "configs").symlink_to(ROOT / "configs")
    lines = [line for line in ALL_COMMANDS if line not in COMMANDS]
    assert len(lines) == 5
    folders = {name: small_data(name) for name in ("image_folder", "sop", "image_table")}
    short = [
        "--model.embedder.backbone",
        "resnet10t",
        "--model.embedder.pretrained",
        "false",
        "--data.num_workers",
        "0",
    ]
    short += ["--data.batch_size", "8", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    for line in lines:
        name = "sop" if "sop" in line else "image_folder"
        line = line.replace("FOLDER", str(folders[name])).replace("TABLE", str(folders["image_table"] / "images"))
        command(*shlex.split(line)[1:], *short)
    query = folders["image_folder"] / "class 1" / "0.png"
    tour = SNIPPETS[1].replace("QUERY.jpg", str(query)).replace("FOLDER", str(folders["image_folder"]))
    names = {}
    exec(tour, names)
    assert names["similarities"][0, 0] > names["similarities"][0, -1]
    assert plt.imread("found.png").std() > 0.1


class Unit(nn.Module):
    def forward(self, embeddings):
        return nn.functional.normalize(embeddings, dim=1)


def test_the_plug_in_snippet_trains():
    names = {}
    exec(SNIPPETS[2], names)
    module = names["YourModule"](nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), Unit()))
    loss = module.training_step((torch.randn(200, 6), torch.arange(200) // 4), 0)
    loss.backward()
    assert module.encoder[0].weight.grad.abs().max() > 0


def test_every_snippet_is_run():
    assert len(SNIPPETS) == 4
    assert len(README.splitlines()) <= 250


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert link.startswith("https://") or (ROOT / link).exists()
