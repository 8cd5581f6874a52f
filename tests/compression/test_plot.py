import pytest
from matplotlib.text import Text

from lightning_recall.compression import SizeRow, draw_sizes
from lightning_recall.compression.plot import STYLES


def row(family, dim, num_bytes, recall, method="name"):
    return SizeRow(method, family, dim, num_bytes, 0, {"recall@1": recall}, 10, 0.1, 0.1, "torch")


@pytest.mark.parametrize("spread", [0.01, 0.0])  # 0: points hide each other
def test_each_row_is_a_point_with_a_label_that_hides_no_other(spread):
    rows = [row(family, 8 * i + 8, 2.0**i, 0.5 + i * spread) for i in range(4) for family in STYLES]
    figure = draw_sizes(rows)
    (axes,) = figure.axes
    points = sorted((x, y) for line in axes.lines if line.get_marker() != "None" for x, y in line.get_xydata())
    assert points == sorted((r.bytes_per_image, 100 * r.scores["recall@1"]) for r in rows)
    assert axes.get_xscale() == "log"
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to the point
    assert len(boxes) == len(rows)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    pixels = axes.transData.transform(points)
    assert not any(box.count_contains(pixels) for box in boxes)
    assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)


def test_labels_are_dimensions_and_numbers_of_the_legend():
    rows = [row("PCA", 8, 32, 0.8), row("faiss", 16, 9, 0.6, "PQ9"), row("binary", 16, 2, 0.7, "signs")]
    rows.append(row("leading dimensions", 16, 64, 0.9, "full"))
    (axes,) = draw_sizes(rows).axes
    labels = {text.xy: text.get_text() for text in axes.texts}
    assert labels == {(32, 80): "8", (9, 60): "2", (2, 70): "1", (64, 90): "full"}
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    assert entries == ["leading dimensions, d", "PCA, d", "1 signs", "2 PQ9"]


def test_rows_that_would_flatten_the_others_are_named():
    (axes,) = draw_sizes([row("PCA", 8, 32, 0.8), row("binary", 8, 1, 0.1, "signs")]).axes
    assert [text.get_text() for text in axes.texts] == ["8"]
    assert axes.get_title().endswith("Not shown: signs: 10.0")


def test_k_is_one_of_the_rows():
    with pytest.raises(ValueError, match="k must be a cut-off of the rows, which have recall@1, got 5"):
        draw_sizes([row("PCA", 8, 32, 0.5)], k=5)
