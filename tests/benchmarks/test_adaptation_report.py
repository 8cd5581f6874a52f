import pytest
from rich.console import Console
from scipy.stats import spearmanr

from lightning_recall.benchmarks.adaptation_report import (
    CHOICES,
    RULES,
    choice_table,
    chosen_accuracy,
    correlation_table,
    correlations,
    rank_correlation,
    runs_of,
)

IM, BNM, ENTROPY = (column for column in CHOICES if column.startswith("target_train"))


def epochs(source, im, bnm, target):
    columns = zip(source, im, bnm, target, strict=True)
    return [
        {"epoch": str(number + 1), "source_test": s, IM: i, BNM: b, ENTROPY: f"-{i}", "target_test": t}
        for number, (s, i, b, t) in enumerate(columns)
    ]


RUN = epochs(["90", "97", "96"], ["1.9", "1.2", "1.0"], ["0.1", "0.2", "0.3"], ["50", "60", "55"])


def test_each_rule_chooses_its_epoch():
    found = {rule: chosen_accuracy(RUN, rule) for rule in RULES}
    assert found == {"last": 55, "source_test": 60, IM: 50, BNM: 55, "target_test": 60}


def test_epochs_that_an_interrupted_run_repeats_count_once():
    rows = [{"method": "a", "draw": 0, **row} for row in (*RUN[:2], RUN[1], RUN[2])]
    runs = runs_of([*rows, {"method": "b", "draw": 0, **RUN[0]}], ("method", "draw"))
    assert {run: [row["epoch"] for row in found] for run, found in runs.items()} == {
        ("a", "0"): ["1", "2", "3"],
        ("b", "0"): ["1"],
    }


def test_correlations_are_those_of_scipy():
    values, accuracy = [3.0, 1.0, 1.0, 7.0, 2.0], [50.0, 40.0, 45.0, 45.0, 60.0]
    rows = [{"a": value, "target_test": target} for value, target in zip(values, accuracy, strict=True)]
    assert rank_correlation(rows, "a") == pytest.approx(spearmanr(values, accuracy).statistic, abs=1e-4)
    constant = rank_correlation([{**row, "a": 1.0} for row in rows], "a")
    assert constant != constant


def test_correlations_over_runs_and_within_them():
    better = epochs(["95", "96"], ["1.5", "1.6"], ["0.3", "0.2"], ["70", "80"])
    found = correlations({("x", "mnist"): [RUN, better], ("x", "usps"): [RUN]}, "mnist")
    assert found[IM] == pytest.approx([1.0, (-0.5 + 1.0) / 2], abs=1e-4)  # last epochs: 1.0, 1.6 and 55, 80
    assert found[BNM] == pytest.approx([-1.0, (0.5 - 1.0) / 2], abs=1e-4)


def test_tables_have_a_row_for_each_group(capsys):

    groups = {("source only", "mnist"): [RUN, RUN], ("DM-ADA", "usps"): [RUN]}
    console = Console(width=200)
    console.print(choice_table(groups))
    console.print(correlation_table(groups))
    text = capsys.readouterr().out
    assert "55.0 ± 0.0" in text
    assert "94.2" in text
    assert "BNM" in text
    assert "usps: within a run" in text
