from typing import NamedTuple

import numpy as np
import pytest

from lightning_recall.benchmarks.result_rows import append_row, pending, read_rows, rows_of, summary, summary_table

SCORES = {"recall@1": "R@1", "map@r": "map@r"}
KEYS = {"rate": "lr", "batch": "batch"}


class Setting(NamedTuple):
    method: str
    rate: float
    seed: int


def test_summary_has_mean_and_spread():
    rows = [
        {"method": "a", "rate": 0.1, "batch": 8, "recall@1": score, "map@r": "5", "seconds": 1}
        for score in ("60", "62", "67")
    ]
    (entry,) = summary(rows, list(SCORES))
    assert (entry["recall@1"], entry["seeds"], entry["map@r std"]) == (63, 3, 0)
    assert entry["recall@1 std"] == pytest.approx(np.std([60, 62, 67], ddof=1))


def test_rows_are_appended_and_read(tmp_path):
    path = tmp_path / "rows.csv"
    assert read_rows(path) == []
    append_row(path, {"method": "a, b", "seed": 0})
    append_row(path, {"method": "c", "seed": 1})
    assert read_rows(path) == [{"method": "a, b", "seed": "0"}, {"method": "c", "seed": "1"}]


def test_the_best_method_is_the_first_line():
    scores = {"rate": 0.1, "batch": 8, "map@r": 5, "seconds": 1}
    rows = [{"method": name, "recall@1": value, **scores} for name, value in (("low", 10), ("high", 20))]
    table = summary_table(summary(rows, list(SCORES)), "title", SCORES, KEYS)
    assert list(table.columns[0].cells) == ["high", "low"]
    assert [column.header for column in table.columns] == ["method", "lr", "batch", "seeds", "R@1", "map@r", "s"]


def test_settings_without_a_row_are_pending():
    settings = [Setting("recall", 1e-4, seed) for seed in range(3)]
    rows = [{**{key: str(value) for key, value in settings[1]._asdict().items()}, "score": "5"}]
    assert pending(settings, rows) == [settings[0], settings[2]]
    assert rows_of(settings, [*rows, {"method": "recall", "rate": "0.0001", "seed": "7"}]) == rows
    assert rows_of([], rows) == []
