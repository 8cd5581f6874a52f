import csv
from functools import partial

import pytest

from lightning_recall.benchmarks import losses
from lightning_recall.datamodules import GlyphsDataModule


@pytest.mark.filterwarnings("ignore:.*`max_epochs` was not set.*")
def test_trains_evaluates_and_writes(glyph_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(losses, "GlyphsDataModule", partial(GlyphsDataModule, glyph_folder))
    names = ("SupRecallAtK, proxies", "recipe")
    small = ["--images", "600", "--batch-sizes", "200", "--seeds", "1", "--rates", "0.01"]
    losses.main(["--losses", *names, *small, "--output", str(tmp_path)])
    shown = capsys.readouterr().out
    assert all(f"│ {name} " in shown for name in names)
    with (tmp_path / "losses_glyphs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == list(names)
    assert all(30 < float(row["recall@1"]) < 95 and int(row["steps"]) == 3 for row in rows)
    assert (tmp_path / "losses_glyphs.png").read_bytes().startswith(b"\x89PNG")


def test_every_entry_builds_a_loss():
    pytest.importorskip("pytorch_metric_learning")  # a test tool
    for config in losses.LOSSES.values():
        assert config.loss(5).training
