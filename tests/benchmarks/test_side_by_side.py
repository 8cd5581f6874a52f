import csv
from functools import partial

import pytest

from lightning_recall.benchmarks import side_by_side
from lightning_recall.benchmarks.side_by_side_images import ImageTask

TINY = ["--batch-size", "16", "--chunk-size", "4", "--rounds", "1", "--steps", "1", "--seconds", "0.1"]


def test_measures_rows_and_writes_them(glyph_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "180")
    monkeypatch.setattr(side_by_side, "ImageTask", partial(ImageTask, root=str(glyph_folder)))
    file = tmp_path / "rows.csv"
    rows = ["chunks, RecallAtKLoss", "plain LightningModule, whole batch, Recall"]
    side_by_side.main([*TINY, "--tasks", "images", "--rows", *rows, "--output", str(file)])
    shown = capsys.readouterr().out
    assert "Not measured: published code (git clone" in shown
    assert all(heading in shown for heading in ("items/s", "tensors, MiB", "all-reduces", "R@1, %"))
    with file.open() as opened:
        ours, plain = csv.DictReader(opened)
    assert (ours["step"], plain["step"]) == ("RetrievalModule, chunks", "plain LightningModule, whole batch")
    for row in (ours, plain):
        assert float(row["items/s"]) > 0
        assert float(row["tensors, MiB"]) > 1
        assert row["all-reduces"] == "1"
        assert max(float(row["gradient error"]), float(row["with dropout"])) < 1e-12
        assert 5 < float(row["R@1, %"]) < 95
    assert float(ours["2 processes"]) < 1e-12
    assert float(plain["2 processes"]) > 0.01  # its loss compares the images of one process only


def test_leaves_out_columns_that_are_not_measured(capsys, monkeypatch):
    pytest.importorskip("transformers")  # not needed by the package
    monkeypatch.setenv("COLUMNS", "180")
    side_by_side.main([*TINY, "--tasks", "text", "--rows", "all kept", "--measure", "gradient"])
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    ((step, loss, error, with_dropout),) = [row for row in rows if row]
    assert (step, loss) == ("chunked_forward, all kept", "in-batch softmax")
    assert max(float(error), float(with_dropout)) < 1e-12
    assert "items/s" not in shown
