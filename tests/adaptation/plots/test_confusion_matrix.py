from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.metrics import confusion_matrix

from lightning_recall.adaptation.plots.confusion_matrix import (
    COLORS,
    DARK_FROM,
    FEW,
    MANY,
    SHADE,
    draw_confusion_matrices,
    percentage,
)


def counts_of(num_classes, size=400):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, num_classes, size)
    guesses = rng.integers(0, num_classes, size)
    return confusion_matrix(truth, np.where(rng.random(size) < 0.7, truth, guesses), labels=range(num_classes))


def texts(axes):
    """Cell -> texts."""
    found = {}
    for text in axes.texts:
        found.setdefault((text.xy[1], text.xy[0]), []).append(text.get_text())
    return found


def test_cells_hold_percentage_and_count():
    figure = draw_confusion_matrices({"source": np.array([[3, 1], [0, 0]]), "target": np.array([[1, 1], [0, 7]])}, "ab")
    source, target = figure.axes
    assert texts(source) == {(0, 0): ["75.0", "3"], (0, 1): ["25.0", "1"]}
    assert texts(target) == {(0, 0): ["50.0", "1"], (0, 1): ["50.0", "1"], (1, 1): ["100", "7"]}
    assert source.get_title() == "source: 75.0 % of 4 images are correct"
    assert target.get_title() == "target: 88.9 % of 9 images are correct"
    assert [label.get_text() for label in source.get_yticklabels()] == ["a", "b"]
    shown = source.images[0].get_array()
    assert shown[0].tolist() == [0.75, 0.25]
    assert shown.mask.tolist() == [[False, False], [True, True]]  # a class without images is no row of zeros


@pytest.mark.parametrize("num_classes", [31, 345])
def test_many_classes_have_fewer_texts(num_classes):
    counts = counts_of(num_classes, 3000)
    (axes,) = draw_confusion_matrices({"target": counts}, [f"c{number}" for number in range(num_classes)]).axes
    expected = set(map(tuple, np.argwhere(counts))) if num_classes <= MANY else set()
    assert set(texts(axes)) == expected
    assert all(len(words) == 1 for words in texts(axes).values())
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert (names == [f"c{number}" for number in range(num_classes)]) == (num_classes == 31)


@pytest.mark.parametrize("num_classes", [2, FEW, 31, 60, 345])
def test_everything_is_inside_the_figure_and_nothing_overlaps(num_classes):
    names = [f"a rather long name {number}" for number in range(num_classes)]
    figure = draw_confusion_matrices(dict.fromkeys(["source", "target"], counts_of(num_classes)), names)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    assert all(box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert not boxes[0].overlaps(boxes[1])
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            extents = [label.get_window_extent(renderer) for label in labels]
            assert not any(first.overlaps(second) for first, second in pairwise(extents))


def relative_luminance(color):
    """WCAG 2.2."""
    values = np.array(color[:3])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_texts_and_shades_have_contrast():
    fractions = np.linspace(0, 1, 101) ** 2
    luminances = np.array([relative_luminance(COLORS(SHADE(fraction))) for fraction in fractions])
    assert (np.diff(luminances) < 0).all()  # shades differ for colour-blind readers, and in print
    is_white = SHADE(fractions) > DARK_FROM
    contrast = np.where(is_white, 1.05 / (luminances + 0.05), (luminances + 0.05) / 0.05)
    assert contrast.min() >= 4.4


def test_percentages():
    assert [percentage(value, 0) for value in (0.0, 0.004, 0.006, 0.996, 1.0)] == ["0", "<1", "1", "100", "100"]
    assert [percentage(value, 1) for value in (0.0001, 0.001, 0.9999)] == ["<0.1", "0.1", "100.0"]


def test_mathematical_names_are_written_as_they_are():
    figure = draw_confusion_matrices({"source": np.eye(2, dtype=int)}, ["$a", "b$"])
    FigureCanvasAgg(figure).draw()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["$a", "b$"]
