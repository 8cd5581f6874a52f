import csv

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from lightning_recall.benchmarks import photographs
from lightning_recall.benchmarks.photographs import METHODS, PRETRAINED, parser, settings_of


@pytest.fixture
def options(tmp_path):
    """Eight classes of six noisy pictures of one colour each, and the random weights of a small network."""
    draw = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "photos" / f"class_{number}"
        folder.mkdir(parents=True)
        for picture in range(6):
            pixels = 30 * number + draw.normal(0, 20, (40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{picture}.png")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pth")
    files = ["--photos", str(tmp_path / "photos"), "--weights", str(tmp_path / "weights.pth")]
    network = ["--backbone", "test_efficientnet", "--size", "32", "--test-size", "32"]
    training = ["--images", "24", "--batch-sizes", "8", "--seeds", "2", "--output", str(tmp_path / "out")]
    return [*files, *network, *training]


def rows_of(tmp_path):
    with (tmp_path / "out" / "photographs.csv").open() as file:
        return list(csv.DictReader(file))


def test_trains_scores_and_goes_on_where_it_stopped(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    photographs.main([*options, "--methods", PRETRAINED, "RecallAtK"])
    first = rows_of(tmp_path)
    assert [(row["method"], row["seed"], row["steps"]) for row in first] == [
        (PRETRAINED, "0", "3"),
        ("RecallAtK", "0", "3"),
        ("RecallAtK", "1", "3"),
    ]
    assert len({row["map@r"] for row in first}) == 3  # training changes the network, and so does the seed
    assert "RecallAtK" in capsys.readouterr().out
    trained = []
    monkeypatch.setattr(photographs, "run", lambda *given: trained.append(given) or first[0])
    photographs.main([*options, "--methods", PRETRAINED, "RecallAtK"])
    assert trained == []
    photographs.main([*options, "--methods", PRETRAINED, "--choose"])  # other classes, so another run
    assert [setting.split for setting, _ in trained] == ["validation"]
    assert (tmp_path / "out" / "photographs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("options")
def test_choosing_never_reads_the_test_classes(tmp_path):
    transforms = photographs.ImageTransforms(size=32)
    data = photographs.Photographs(str(tmp_path / "photos"), transforms, choose=True, batch_size=8)
    data.setup("fit")
    assert set(data.train_data.labels) == {1, 2}
    assert set(data.test_data.labels) == {0, 3}


def test_unreadable_photographs_are_not_scored(options, tmp_path):
    def score():
        (setting,) = settings_of(parser().parse_args([*options, "--methods", PRETRAINED]))
        return photographs.run(setting, 0)

    before = score()
    for number in range(6):
        (tmp_path / "photos" / "class_7" / f"broken_{number}.png").write_bytes(b"no image %d" % number)
    with pytest.warns(UserWarning, match="Cannot read"):
        after = score()
    assert [before[name] for name in ("recall@1", "map@r")] == [after[name] for name in ("recall@1", "map@r")]


def test_rates_grow_with_the_batch_if_asked(options):
    given = [*options[:-8], "--methods", "RecallAtK", "--batch-sizes", "96", "384", "--seeds", "1"]
    assert [setting.rate for setting in settings_of(parser().parse_args(given))] == [1e-4, 1e-4]
    scaled = settings_of(parser().parse_args([*given, "--rate-exponent", "0.5"]))
    assert [(setting.batch, setting.rate) for setting in scaled] == [(96, 1e-4), (384, 2e-4)]


def test_every_method_builds_a_loss():
    pytest.importorskip("pytorch_metric_learning")  # a test tool
    for method in METHODS.values():
        assert method.loss(5, 8).training
