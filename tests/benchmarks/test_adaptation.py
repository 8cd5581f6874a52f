import csv

import numpy as np
import pytest
import torch

from lightning_recall.benchmarks import adaptation
from lightning_recall.benchmarks.adaptation import (
    MAX_SCORED,
    Setting,
    digits_of,
    direction,
    parser,
    score,
    settings_of,
    title_of,
)
from lightning_recall.benchmarks.adaptation_methods import METHODS, build
from lightning_recall.benchmarks.adaptation_report import CHOICES


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Random digits: 120 of MNIST and 110 of USPS are drawn, and short runs."""
    from lightning_recall.adaptation.datamodules import digits

    draw = np.random.default_rng(0)
    sizes = {"mnist": (150, 28), "usps_train": (130, 16), "usps_test": (12, 16)}
    arrays = {}
    for name, (count, size) in sizes.items():
        arrays[f"{name}_images"] = draw.integers(0, 256, (count, size, size), dtype=np.uint8)
        arrays[f"{name}_labels"] = np.arange(count) % 10
    np.savez(tmp_path / "digits.npz", **arrays)
    monkeypatch.setattr(digits, "SAMPLED", {"mnist": 120, "usps": 110})
    given = ["--digits", str(tmp_path / "digits.npz"), "--epochs", "2", "--output", str(tmp_path / "out")]
    return [*given, "--methods", "source only", "DANN + mixup"]


def rows_in(tmp_path, name):
    with (tmp_path / "out" / name).open() as file:
        return list(csv.DictReader(file))


def test_runs_are_written_and_not_repeated(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    adaptation.main([*options, "--draws", "0", "1"])
    rows, epochs = rows_in(tmp_path, "adaptation.csv"), rows_in(tmp_path, "adaptation_epochs.csv")
    assert [(row["draw"], row["source"], row["method"]) for row in rows] == [
        (draw, source, method)
        for draw in ("0", "1")
        for source in ("mnist", "usps")
        for method in ("source only", "DANN + mixup")
    ]
    assert [row["epoch"] for row in epochs] == ["1", "2"] * 8
    for row, last in zip(rows, epochs[1::2], strict=True):
        assert row["target_test"] == last["target_test"]
        assert set(CHOICES) <= set(row)
    assert "published" in capsys.readouterr().out
    assert (tmp_path / "out" / "adaptation.png").stat().st_size > 0
    assert not list((tmp_path / "out" / "checkpoints").iterdir())
    monkeypatch.setattr(adaptation, "run", lambda *_: pytest.fail("runs are not repeated"))
    adaptation.main([*options, "--draws", "0", "1"])
    adaptation.main([*options, "--report"])


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_an_interrupted_run_continues_from_its_checkpoint(options, tmp_path, monkeypatch):
    short = [*options[:-1], "--methods", "DANN + mixup", "--sources", "usps", "--draws", "3", "--precision", "32-true"]
    adaptation.main(short)
    whole = rows_in(tmp_path, "adaptation.csv")[0]
    (tmp_path / "out" / "adaptation.csv").unlink()
    (tmp_path / "out" / "adaptation_epochs.csv").unlink()
    original = adaptation.EpochScores.on_train_epoch_end

    def interrupted(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt
        original(self, trainer, pl_module)

    monkeypatch.setattr(adaptation.EpochScores, "on_train_epoch_end", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        adaptation.main(short)
    assert len(rows_in(tmp_path, "adaptation_epochs.csv")) == 1
    monkeypatch.setattr(adaptation.EpochScores, "on_train_epoch_end", original)
    adaptation.main(short)
    (resumed,) = rows_in(tmp_path, "adaptation.csv")
    assert {**resumed, "seconds": ""} == {**whole, "seconds": ""}
    assert [row["epoch"] for row in rows_in(tmp_path, "adaptation_epochs.csv")] == ["1", "2"]


def test_scores_are_those_of_the_images(options):
    data = digits_of(Setting("source only", "mnist", 0, 1, "32-true"), options[1])
    assert [len(data.domains["source"][split]) for split in ("train", "test")] == [120, 30]
    assert [len(data.domains["target"][split]) for split in ("train", "test")] == [110, 12]
    assert (data.domains["target"]["train"].labels == -1).all()
    module = build("source only", 0)
    found = score(module, data)
    module.eval()
    test = data.domains["target"]["test"]
    with torch.no_grad():
        right = module(test.images).argmax(1) == torch.from_numpy(test.labels)
    assert found["target_test"] == pytest.approx(100 * right.double().mean().item(), abs=1e-3)
    assert len(test) < MAX_SCORED["target_test"]


def test_settings_are_complete_rounds_over_the_methods():
    given = parser().parse_args(
        ["--digits", "x.npz", "--draws", "4", "--sources", "usps", "--kl", "0.01", "--width", "16"]
    )
    settings = settings_of(given)
    assert [setting.method for setting in settings] == list(METHODS)
    assert {setting.draw for setting in settings} == {4}
    assert {setting.method: (setting.kl, setting.width) for setting in settings if "DM-ADA" in setting.method} == {
        "source only, DM-ADA networks": (1.0, 16),
        "DM-ADA without mixup": (0.01, 16),
        "DM-ADA": (0.01, 16),
    }
    assert {(setting.kl, setting.width) for setting in settings if "DM-ADA" not in setting.method} == {(1.0, 64)}
    titles = [title_of(setting._asdict()) for setting in settings]
    assert titles[0] == "source only"
    assert titles[-1] == "DM-ADA, KL 0.01, width 16"
    assert direction("usps") == "USPS to MNIST"
