import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from lightning_recall.plots import FoundImage, draw_search_results
from lightning_recall.plots.retrieved_images import IRRELEVANT, RELEVANT, to_picture

IMAGES = [torch.randint(0, 256, (3, 20, 10 + 5 * i), dtype=torch.uint8) for i in range(4)]


def test_matches_are_told_from_others():
    row = [
        FoundImage(IMAGES[0], "query.jpg"),
        FoundImage(IMAGES[1], "cat", 0.91, True),
        FoundImage(IMAGES[2], "$dog$", 0.4, False),
    ]
    (axes,) = draw_search_results([row, row[:2]], "title").axes
    texts = [text.get_text() for text in axes.texts]
    first = ["query", "query.jpg", "0.91", "cat", "0.40\nno match", "$dog$"]
    assert texts == [*first, *first[:4]]
    query, match, other = axes.patches[:3]
    assert to_hex(query.get_edgecolor()) == "#000000"
    assert (to_hex(match.get_edgecolor()), match.get_linestyle()) == (RELEVANT[0], "solid")
    assert to_hex(other.get_edgecolor()) == IRRELEVANT[0]
    assert other.get_linestyle() != match.get_linestyle()
    for image, drawn in zip([*IMAGES[:3], *IMAGES[:2]], axes.images, strict=True):
        np.testing.assert_allclose(drawn.get_array(), to_picture(image))


def test_without_threshold_nothing_is_judged():
    (axes,) = draw_search_results([[FoundImage(IMAGES[0]), FoundImage(IMAGES[1], "cat", -0.5)]]).axes
    assert [text.get_text() for text in axes.texts] == ["query", "-0.50", "cat"]
    assert to_hex(axes.patches[1].get_edgecolor()) == "#808080"


@pytest.mark.parametrize("scale", [1, 10])
def test_missing_images_are_empty_frames_with_their_name(scale):
    images = [image.repeat_interleave(scale, 1).repeat_interleave(scale, 2) for image in IMAGES[:2]]
    name = "a name of two lines.jpg"
    row = [FoundImage(None, name), *(FoundImage(image, name, 0.5, False) for image in [None, *images])]
    figure = draw_search_results([row, row[:1]], "first line\nsecond line")
    (axes,) = figure.axes
    inside = [text for text in axes.texts if text.get_text() == "no image"]
    assert len(inside) == 3
    assert axes.images[0].get_array().min() == 1
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in axes.texts if text not in inside]
    boxes = [text.get_window_extent(renderer) for text in [*texts, figure._suptitle]]
    frames = [image.get_window_extent(renderer) for image in axes.images]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not any(box.overlaps(frame) for box in boxes for frame in frames)
    assert frames[0].width == pytest.approx(frames[0].height) == max(frame.height for frame in frames)
    for text, frame in zip(inside, (frames[0], frames[1], frames[4]), strict=True):
        np.testing.assert_allclose(
            np.mean(text.get_window_extent(renderer).get_points(), 0), np.mean(frame.get_points(), 0), atol=3
        )


def test_only_missing_images():
    (axes,) = draw_search_results([[FoundImage(None, "a"), FoundImage(None, "b", 0.3)]]).axes
    assert len(axes.images) == 2
