import csv
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from lightning_recall.segmentation.callbacks.class_table import ClassTable, bar, class_table, rarest
from lightning_recall.segmentation.scores import SegmentationScores, scores_of

CONFUSION = torch.tensor([[90, 0, 0, 0], [5, 3, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]])
NAMES = ["road", "traffic light", "[red]pole", "absent"]


def printed(table):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def rows_of(text):
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.count("│") > 3]
    return {row[0]: row[1:] for row in rows}


def test_a_row_for_each_class():
    text = printed(class_table(scores_of(CONFUSION), NAMES, "Classes"))
    rows = rows_of(text)
    assert rows["road"] == ["90.00", "█" * 20, "94.7", "100.0", "94.7"]
    assert rows["traffic light"] == ["8.00", "██ ▲", "30.0", "37.5", "60.0"]
    assert rows["[red]pole"] == ["2.00", "▏ ▲", "0.0", "0.0", "0.0"]
    assert rows["absent"] == ["0.00", "", "-", "-", "-"]
    assert rows["mean"] == ["", "pixel accuracy 93.0", "41.6", "45.8", "51.6"]
    assert "▲ the rarest classes" in text


def test_numbers_and_marks_do_not_need_colour():
    """Everything is there in a terminal without colours."""
    text = printed(class_table(scores_of(CONFUSION), NAMES, "Classes"))
    assert "\x1b" not in text


def test_without_pixels():
    text = printed(class_table(scores_of(torch.zeros(2, 2, dtype=torch.int64)), ["a", "b"], "Classes"))
    assert rows_of(text)["a"] == ["-", "", "-", "-", "-"]
    assert "▲" not in text


def test_marks_and_bars():
    assert rarest([0.25] * 4) == set()
    assert rarest([0.9, 0.04, 0.03, 0.02, 0.01]) == {2, 3, 4}
    assert rarest([float("nan")] * 3) == set()
    assert [len(bar(value, 0.8)) for value in (0.8, 0.4, 1e-9, 0.0, float("nan"))] == [20, 10, 1, 0, 0]


class Scored(LightningModule):
    """A module without our base class; its batches are (predictions, target)."""

    def __init__(self, parts=("",)):
        super().__init__()
        self.parts = parts

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    test_step = validation_step

    def on_validation_epoch_end(self):
        metric = SegmentationScores(4)
        metric.confusion += CONFUSION
        metric.update(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
        self.class_scores = {part: metric.compute() for part in self.parts}

    on_test_epoch_end = on_validation_epoch_end


def trainer_of(folder, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callback = ClassTable(kwargs.pop("class_names", None))
    return Trainer(accelerator="cpu", devices=1, default_root_dir=folder, callbacks=[callback], **quiet, **kwargs)


LOADER = DataLoader(torch.zeros(2, 1))


def test_files_of_validation_and_test(tmp_path, capsys):
    trainer = trainer_of(tmp_path, class_names=NAMES)
    trainer.validate(Scored(), LOADER)
    trainer.test(Scored(), LOADER)
    trainer.test(Scored(("day", "night/late")), [LOADER, LOADER])
    shown = capsys.readouterr().out
    assert "Classes of the val split, in %" in shown
    assert "Classes of the test split on night/late, in %" in shown
    folder = tmp_path / "runs" / "version_0"
    stems = {"val", "test", "test_day", "test_night_late"}
    assert {path.name for path in folder.iterdir()} == {f"class_scores_{stem}.csv" for stem in stems}
    assert str(folder / "class_scores_val.csv") in shown
    with (folder / "class_scores_test.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [*NAMES, "mean over classes"]
    assert float(rows[1]["accuracy"]) == 0.375
    assert rows[3]["iou"] == ""
    assert float(rows[2]["pixel_fraction"]) == pytest.approx(2 / 101, abs=1e-6)
    counts = CONFUSION.clone()
    counts[0, 0] += 1
    means = [scores_of(counts)[name].item() for name in ("miou", "mean_accuracy", "mean_precision")]
    assert [float(rows[-1][name]) for name in ("iou", "accuracy", "precision")] == pytest.approx(means, abs=1e-5)


def test_fast_dev_run_writes_nothing(tmp_path, capsys):
    trainer_of(tmp_path, fast_dev_run=True).test(Scored(), LOADER)
    assert "Classes of the test split" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.csv"))


def test_names_of_module_and_data_module():
    def names(table, module, data):
        trainer = SimpleNamespace(datamodule=data)
        return list(ClassTable(table).names(trainer, module, 2))

    named, unnamed = SimpleNamespace(class_names=("a", "b")), SimpleNamespace()
    assert names(["x", "y"], named, named) == ["x", "y"]
    assert names(None, named, SimpleNamespace(class_names=("c", "d"))) == ["a", "b"]
    assert names(None, unnamed, named) == ["a", "b"]
    assert names(None, unnamed, None) == ["0", "1"]
    with pytest.raises(ValueError, match="each of the 2 classes, got 3 names"):
        names(["x", "y", "z"], unnamed, None)


def test_a_module_without_scores_is_an_error(tmp_path):
    class Unscored(Scored):
        def on_test_epoch_end(self):
            pass

    with pytest.raises(ValueError, match=r"ClassTable needs Unscored.class_scores: set it to {'': scores.compute\(\)}"):
        trainer_of(tmp_path).test(Unscored(), LOADER)
