import numpy as np
import pytest

from lightning_recall.benchmarks.result_rows import append_row, read_rows, summary, summary_table


def test_summary_has_mean_and_spread():
    rows = [
        {"method": "a", "rate": 0.1, "batch": 8, "recall@1": score, "map@r": "5", "seconds": 1}
        for score in ("60", "62", "67")
    ]
    (entry,) = summary(rows)
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
    entries = summary([{"method": name, "recall@1": value, **scores} for name, value in (("low", 10), ("high", 20))])
    assert list(summary_table(entries, "title").columns[0].cells) == ["high", "low"]
