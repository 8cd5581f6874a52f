import pytest

from lightning_recall.compression import SizeRow, draw_sizes
from lightning_recall.compression.plot import STYLES


def row(family, dim, num_bytes, recall, method="name"):
    return SizeRow(method, family, dim, num_bytes, 0, {"recall@1": recall}, 0.1, 0.1, "torch")


def test_each_row_is_a_point_with_a_label_that_hides_no_other():
    rows = [row(family, 8 * i + 8, 2.0**i, 0.5 + i / 100) for i in range(6) for family in STYLES]
    figure = draw_sizes(rows)
    (axes,) = figure.axes
    points = sorted((x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True))
    assert points == sorted((r.bytes_per_image, 100 * r.scores["recall@1"]) for r in rows)
    assert axes.get_xscale() == "log"
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(rows)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_rows_that_would_flatten_the_others_are_named():
    (axes,) = draw_sizes([row("PCA", 8, 32, 0.8), row("binary", 8, 1, 0.1, "signs")]).axes
    assert [text.get_text() for text in axes.texts] == ["8"]
    assert axes.get_title().endswith("Not shown: signs: 10.0")


def test_k_is_one_of_the_rows():
    with pytest.raises(ValueError, match="k must be a cut-off of the rows, which have recall@1, got 5"):
        draw_sizes([row("PCA", 8, 32, 0.5)], k=5)
