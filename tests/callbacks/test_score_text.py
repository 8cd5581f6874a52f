import pytest

from lightning_recall.callbacks.score_text import cell, percent


@pytest.mark.parametrize(
    ("value", "in_percent", "in_csv"), [(0.0, "0.0", "0"), (1.0, "100.0", "1"), (1 / 3, "33.3", "0.333333")]
)
def test_numbers(value, in_percent, in_csv):
    assert (percent(value), cell(value)) == (in_percent, in_csv)
    assert percent(value, 0) == f"{round(100 * value)}"


def test_a_score_that_does_not_exist():
    assert (percent(float("nan")), cell(float("nan"))) == ("-", "")
