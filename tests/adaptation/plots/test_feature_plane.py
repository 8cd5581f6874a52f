import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from lightning_recall.adaptation.plots import FeaturePoints, draw_feature_planes
from lightning_recall.adaptation.plots.feature_plane import DOMAIN_COLORS, MAX_CLASSES, OTHERS
from lightning_recall.callbacks.class_colors import class_colors


def row_of(title, num_classes=3, size=60, labelled=True):
    rng = np.random.default_rng(0)
    is_source = np.arange(size) < size // 2
    labels = rng.integers(0, num_classes, size)
    return FeaturePoints(title, rng.normal(size=(size, 2)), is_source, np.where(is_source | labelled, labels, -1))


def drawn(axes):
    """Positions and colours of source and target."""
    return [(points.get_offsets().data, points.get_facecolors()[:, :3]) for points in axes.collections]


def legend_texts(figure):
    return [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]


def test_rows_are_times_and_columns_are_colours():
    rows = [row_of("before training"), row_of("after 3 epochs")._replace(points=np.arange(120.0).reshape(60, 2))]
    figure = draw_feature_planes(rows, ["cat", "_dog", "$x"], "t-SNE")
    assert len(figure.axes) == 4
    assert [axes.get_ylabel() for axes in figure.axes] == ["before training", "", "after 3 epochs", ""]
    for row, by_domain, by_class in zip(rows, figure.axes[::2], figure.axes[1::2], strict=True):
        for number, (domain, chosen) in enumerate((("source", row.is_source), ("target", ~row.is_source))):
            points, colors = drawn(by_domain)[number]
            assert (points == row.points[chosen]).all()
            assert np.allclose(colors, to_rgb(DOMAIN_COLORS[domain]))
            points, colors = drawn(by_class)[number]
            assert (points == row.points[chosen]).all()
            assert np.allclose(colors, class_colors(3)[row.labels[chosen]] / 255)
    assert legend_texts(figure) == [["source", "target"], ["cat", " _dog", "$x", "source", "target"]]


def test_images_without_label_are_grey():
    figure = draw_feature_planes([row_of("test", labelled=False)], "abc")
    (_, source), (_, target) = drawn(figure.axes[1])
    assert np.allclose(target, float(OTHERS))
    assert not np.isclose(source, float(OTHERS)).all(1).any()
    assert legend_texts(figure)[1] == ["a", "b", "c", "class not known", "source", "target"]


def test_only_the_most_frequent_classes_have_colours():
    row = row_of("test", 50, 3000)
    labels = np.where(row.labels < 4, 7, row.labels)  # the classes 0 to 3 do not occur, 7 is the most frequent
    figure = draw_feature_planes([row._replace(labels=labels)], [f"c{number}" for number in range(50)])
    names = legend_texts(figure)[1]
    assert len(names) == MAX_CLASSES + 3
    assert "c7" in names
    counts = np.bincount(labels)
    rarest = counts[[int(name[1:]) for name in names[:MAX_CLASSES]]].min()
    assert (counts > rarest).sum() < MAX_CLASSES
    assert names[MAX_CLASSES:] == ["other classes", "source", "target"]


@pytest.mark.parametrize("num_classes", [2, 50])
@pytest.mark.parametrize("num_rows", [1, 2])
def test_legends_are_inside_and_do_not_overlap(num_classes, num_rows):
    names = [f"desktop_computer_number_{number}" for number in range(num_classes)]
    rows = [row_of("after 10 epochs", num_classes, 1000)._replace(labels=np.arange(1000) % num_classes - 1)] * num_rows
    figure = draw_feature_planes(rows, names, "principal components")
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [*(legend.get_window_extent(renderer) for legend in figure.legends)]
    boxes += [*(text.get_window_extent(renderer) for text in figure.texts)]
    boxes += [axes.get_tightbbox(renderer) for axes in figure.axes]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1  # noqa: PT018  # four sides of one box
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
