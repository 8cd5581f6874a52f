import re

import pytest
import pytorch_lightning as pl
import torch
from rich import get_console
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.callbacks import EvaluationReport, RetrievalEvaluation
from lightning_recall.callbacks.score_rows import interval_notes, interval_text, print_scores
from lightning_recall.metrics import Interval, RetrievalScores, score_intervals

LABELS = torch.arange(120) // 4
IMAGES = torch.randn(30, 3, 3, generator=torch.Generator().manual_seed(0))[LABELS][:, None] + torch.randn(
    120, 1, 3, 3, generator=torch.Generator().manual_seed(1)
)


class Flatten(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(9))

    def forward(self, images):
        return images.flatten(1) * self.scale

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)


def trainer(tmp_path, *callbacks, **kwargs):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    settings = {"enable_checkpointing": False, "devices": 1, "max_epochs": 1, "num_sanity_val_steps": 0, **kwargs}
    return pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=list(callbacks), **quiet, **settings)


@pytest.fixture
def loader():
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=50)


def expected_intervals():
    metric = RetrievalScores(("recall", "map@r"), ks=(1,))
    metric.update(IMAGES.flatten(1), LABELS)
    result = metric.search()
    means, intervals = result.means(), score_intervals(result)
    return [f"{100 * means[name]:.1f} {interval_text(intervals[name])}" for name in means]


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("split", ["validate", "test"])
def test_the_table_of_an_evaluation_shows_intervals(split, devices, tmp_path, loader, capfd):
    several = {"devices": 2, "strategy": "ddp_fork"} if devices == 2 else {}
    run = getattr(trainer(tmp_path, RetrievalEvaluation(ks=(1,)), **several), split)
    run(Flatten(), loader, verbose=False)
    shown = capfd.readouterr().out
    first, second = expected_intervals()
    assert re.search(rf"│ model │ +{re.escape(first)} │ +{re.escape(second)} │", shown)
    assert shown.count("95 % intervals: bootstrap over 30 classes") == 1


def test_intervals_can_be_turned_off(tmp_path, loader, capsys):
    trainer(tmp_path, RetrievalEvaluation(ks=(1,), intervals=False)).test(Flatten(), loader, verbose=False)
    shown = capsys.readouterr().out
    assert "Retrieval on the test split" in shown
    assert "interval" not in shown
    assert "[" not in shown.split("Retrieval on")[1]


def test_epochs_of_a_training_have_none(tmp_path, loader, monkeypatch):
    calls = []
    monkeypatch.setattr("lightning_recall.callbacks.retrieval_evaluation.score_intervals", calls.append)
    trainer(tmp_path, RetrievalEvaluation(ks=(1,))).fit(Flatten(), loader, loader)
    assert calls == []


def test_the_report_shows_intervals(tmp_path, loader):
    callbacks = [RetrievalEvaluation(ks=(1,)), EvaluationReport(num_queries=2, num_neighbors=2)]
    trainer(tmp_path, *callbacks).test(Flatten(), loader, verbose=False)
    text = (tmp_path / "runs/version_0/report.html").read_text()
    for interval in callbacks[0].results[0].intervals.values():
        shown = f"[{100 * interval.lower:.2f}, {100 * interval.upper:.2f}]"
        assert f'<td>{100 * interval.mean:.2f} <span class="interval">{shown}</span></td>' in text
    assert '<p class="details">95 % intervals: bootstrap over 30 classes</p>' in text


@pytest.fixture
def console(monkeypatch):
    monkeypatch.setattr(get_console(), "_width", 100)
    return get_console()


def interval(mean=0.5, num_classes=30, reason=""):
    return Interval(mean, mean - 0.01, mean + 0.02, 1.0, num_classes, reason)


@pytest.mark.parametrize(("num_scores", "separator"), [(3, " "), (6, "\n")])
def test_six_scores_fit_in_a_hundred_columns(num_scores, separator, console, capsys):
    scores = {f"recall@{k}": torch.tensor(0.5) for k in range(1, num_scores + 1)}
    print_scores({"model": scores}, "Title", "caption", {"model": dict.fromkeys(scores, interval())})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= console.width
    rows = [line for line in lines if "│" in line]
    assert len(rows) == (1 if separator == " " else 2)
    assert rows[-1].count("[49.0, 52.0]") == num_scores
    assert rows[0].count("50.0") == num_scores


@pytest.mark.parametrize(("width", "num_lines"), [(120, 1), (70, 3), (55, 1)])
def test_on_narrow_terminals_only_the_model_has_intervals(width, num_lines, monkeypatch, capsys):
    monkeypatch.setattr(get_console(), "_width", width)
    scores = {f"recall@{k}": torch.tensor(0.5) for k in range(1, 6)}
    titles = ("raw pixels", "model")
    print_scores(dict.fromkeys(titles, scores), "T", "", {title: dict.fromkeys(scores, interval()) for title in titles})
    rows = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert all(line.count("50.0") == 5 for line in rows[:2])
    assert len(rows) == 1 + num_lines
    assert ("[49.0" in rows[0]) == (width == 120)
    assert any("[49.0" in line for line in rows[1:]) == (width > 55)


def test_notes_say_why_there_is_no_interval():
    some = {"a": {"recall@1": interval(), "recall@2": interval(reason="too few"), "map@r": interval(reason="too few")}}
    assert interval_notes(some) == [
        "95 % intervals: bootstrap over 30 classes",
        "no interval for R@2, mAP@R: too few",
    ]
    assert interval_notes({"a": {"mrr": interval(reason="1 class")}}) == ["no interval: 1 class"]
    counts = {"a": {"mrr": interval(num_classes=20)}, "b": {"mrr": interval(num_classes=4000)}}
    assert interval_notes(counts) == ["95 % intervals: bootstrap over 20 to 4,000 classes"]
    assert interval_notes({}) == interval_notes({"a": {}}) == []


def test_the_text_of_an_interval():
    assert interval_text(interval()) == "[49.0, 52.0]"
    assert interval_text(interval(), digits=2) == "[49.00, 52.00]"
    assert interval_text(interval(reason="too few")) == ""
