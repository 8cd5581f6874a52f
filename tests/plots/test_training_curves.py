import pytest

from lightning_recall.plots import draw_training_curves


def test_curves_are_drawn_in_percent():
    figure = draw_training_curves({"loss": [(1, 0.5)], "val/recall@1": [(1, 0.25), (2, 0.75)]}, "loss")
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == [0.5]
    assert right.lines[0].get_ydata().tolist() == [25, 75]
    assert right.lines[0].get_label() == "val/recall@1: 75.0"


def test_curves_are_ordered_by_their_last_values():
    curves = {"a": [(1, 0.5), (2, 0.9)], "b": [(1, 0.8), (2, 0.1)], "c": [(1, 0.6)]}
    labels = [line.get_label() for line in draw_training_curves(curves, "loss").axes[0].lines]
    assert labels == ["b: 10.0", "c: 60.0", "a: 90.0"]


@pytest.mark.parametrize(
    ("curves", "titles"),
    [
        ({"loss": [(1, 0.5)]}, ["Training loss"]),
        ({"val/recall@1": [(1, 0.5)]}, ["Recall@k on the validation classes"]),
        ({"val/recall@1": [(1, 0.5)], "loss": [(1, 1)]}, ["Training loss", "Recall@k on the validation classes"]),
        ({"val/miou": [(1, 0.5)]}, ["Validation"]),
    ],
)
def test_there_is_no_empty_panel(curves, titles):
    axes = draw_training_curves(curves, "loss").axes
    assert [each.get_title() for each in axes] == titles
    assert all(each.lines for each in axes)
