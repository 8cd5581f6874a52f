import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_recall.adaptation.plots import draw_domain_images
from lightning_recall.adaptation.plots.domain_images import row_label, rows_of

NAMES = ("source", "target", "mixed 0.25", "mixed 0.75")


def images_of(size, count=4, generated=True):
    rng = np.random.default_rng(0)
    names = [*NAMES, *(f"generated {name}" for name in NAMES if generated)]
    return {name: rng.integers(0, 256, (count, *size, 3)).astype(np.uint8) for name in names}


@pytest.mark.parametrize("generated", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (20, 60)])
def test_rows_lead_from_source_to_target(size, generated):
    images = images_of(size, generated=generated)
    figure = draw_domain_images(images, ["a", "b", "$c", "a long name of a class"], "After 3 epochs")
    (axes,) = figure.axes
    order = ["source", "mixed 0.75", "mixed 0.25", "target"]
    expected = [images[prefix + name] for prefix in ("", "generated ")[: 1 + generated] for name in order]
    shown = [picture.get_array() for picture in axes.images]
    assert len(shown) == len(expected) * 4
    assert all((image == pixels).all() for image, pixels in zip(shown, np.concatenate(expected), strict=True))
    left, right, bottom, top = axes.images[0].get_extent()
    assert (right - left) / (bottom - top) == pytest.approx(size[1] / size[0])
    labels = [text.get_text() for text in axes.texts]
    assert [label for label in labels if label in ("source", "75 % source", "25 % source", "target")] == [
        *("source", "75 % source", "25 % source", "target")
    ]
    assert ("generated from the features" in labels) == generated


@pytest.mark.parametrize("count", [1, 8])
def test_texts_neither_overlap_nor_leave_the_figure(count):
    names = [f"desktop_computer_{number}" for number in range(count)]
    figure = draw_domain_images(images_of((32, 32), count), names, "After 3 epochs")
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    boxes += [picture.get_window_extent(renderer) for picture in figure.axes[0].images]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1  # noqa: PT018  # four sides of one box
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


def test_row_names():
    assert rows_of(dict.fromkeys(NAMES)) == ["source", "mixed 0.75", "mixed 0.25", "target"]
    assert [row_label(name) for name in ("mixed 1", "mixed 0.333", "target")] == [
        "100 % source",
        "33.3 % source",
        "target",
    ]
