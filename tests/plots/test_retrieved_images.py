import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from lightning_recall.metrics import RetrievalScores
from lightning_recall.plots import draw_neighbors, draw_retrieved_images
from lightning_recall.plots.retrieved_images import (
    IRRELEVANT,
    RELEVANT,
    RetrievedQueries,
    choose_queries,
    draw_queries,
    to_picture,
)


def test_frames_show_which_neighbors_are_relevant():
    pictures = {i: to_picture(torch.full((1, 8, 8), i, dtype=torch.uint8)) for i in range(4)}
    retrieved = RetrievedQueries(
        queries=torch.tensor([0]),
        first_ranks=torch.tensor([1234]),
        neighbors=torch.tensor([[2, 3]]),
        similarities=torch.tensor([[0.9, 0.8]]),
        is_relevant=torch.tensor([[True, False]]),
    )
    figure = draw_queries(pictures, retrieved)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["first relevant\nat rank 1,234", "0.90", "0.80"]
    _, relevant, irrelevant = axes.patches
    assert relevant.get_linestyle() != irrelevant.get_linestyle()
    for frame, (colour, _) in ((relevant, RELEVANT), (irrelevant, IRRELEVANT)):
        assert to_hex(frame.get_edgecolor()) == colour


def test_images_keep_their_aspect_ratio_and_their_cell():
    pictures = {0: np.zeros((10, 20)), 1: np.zeros((20, 10, 3)), 2: np.zeros((8, 8))}
    queries, neighbors, similarities = torch.tensor([0, 1]), torch.tensor([[1, 2], [2, 0]]), torch.ones(2, 2)
    retrieved = RetrievedQueries(queries, torch.tensor([1, 1]), neighbors, similarities, similarities > 0)
    (axes,) = draw_queries(pictures, retrieved).axes
    drawn = [image.get_extent() for image in axes.images]  # left, right, bottom, top; y goes down
    shapes = [(right - left) / (bottom - top) for left, right, bottom, top in drawn]
    np.testing.assert_allclose(shapes, [2, 0.5, 1, 0.5, 1, 2])
    middles = np.array([((left + right) / 2, (bottom + top) / 2) for left, right, bottom, top in drawn]).reshape(
        2, 3, 2
    )
    assert (np.diff(middles[:, :, 0], axis=1) > 0.85).all()  # columns and rows do not touch
    assert (np.diff(middles[:, :, 1], axis=0) > 0.85).all()
    for frame, (left, right, bottom, top) in zip(axes.patches, drawn, strict=True):
        np.testing.assert_allclose(frame.get_bbox().extents, (left, top, right, bottom))


@pytest.mark.parametrize("side", [40, 160, 500])
def test_names_are_below_their_images_and_do_not_overlap(side):
    names = dict(
        enumerate(["Jay", "American_Three_toed_Woodpecker", "Aston Martin Virage Convertible 2012 Ed.", "W" * 40])
    )
    shapes = [(side, side), (side // 2, side), (side, side // 2, 3), (side, side, 3)]
    pictures = {item: np.zeros(shape) for item, shape in enumerate(shapes)}
    queries, neighbors = torch.tensor([0, 1]), torch.tensor([[1, 2, 3], [3, 2, 1]])
    similarities, relevant = torch.ones(2, 3), torch.tensor([[True, False, True]] * 2)
    retrieved = RetrievedQueries(queries, torch.tensor([1, 1]), neighbors, similarities, relevant)
    figure = draw_queries(pictures, retrieved, names)
    (axes,) = figure.axes
    below = [text for text in axes.texts if text.get_va() == "top"]
    assert [text.get_text()[0] for text in below] == [names[i][0] for i in (0, 1, 2, 3, 1, 3, 2, 1)]
    assert to_hex(below[1].get_color()) == RELEVANT[0]
    assert to_hex(below[2].get_color()) == IRRELEVANT[0]
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    images = [image.get_window_extent(renderer) for image in axes.images]
    assert not any(box.overlaps(image) for box in boxes for image in images)
    sides = [max(box.width, box.height) / figure.dpi for box in images]
    np.testing.assert_allclose(sides, 0.85 if side == 40 else 1.45)


def test_draw_retrieved_images_takes_names():
    metric = RetrievalScores(("recall",))
    metric.update(torch.randn(6, 3), torch.arange(6) // 2, torch.arange(6))
    figure = draw_retrieved_images(
        metric.search(), lambda _: torch.rand(1, 4, 4), 1, 2, class_names=["ant", "bee", "cat"]
    )
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sum(text in ("ant", "bee", "cat") for text in texts) == 3


def test_queries_are_of_different_classes():
    labels = torch.tensor([0] * 50 + [1, 1, 2, 2, 3])
    metric = RetrievalScores(("recall",))
    metric.update(torch.randn(55, 3), labels)
    result = metric.search()
    chosen = result.queries[choose_queries(result, 3, "random", seed=0)]
    assert sorted(labels[chosen].tolist()) == [0, 1, 2]
    more = result.queries[choose_queries(result, 10, "random", seed=0)]
    assert len(set(more.tolist())) == 10
    assert 3 not in labels[more]  # has no relevant item
    assert torch.equal(chosen, result.queries[choose_queries(result, 3, "random", seed=0)])


def test_images_are_looked_up_by_their_index_in_the_data_set():
    images, labels = torch.rand(12, 1, 4, 4), torch.arange(12) // 3
    places = torch.arange(12).flip(0) + 100  # of the items in the data set
    metric = RetrievalScores(("recall",))
    metric.update(images.flatten(1), labels, places)
    loaded = []

    def load_image(index):
        loaded.append(index)
        return images[111 - index]

    (axes,) = draw_retrieved_images(metric.search(), load_image, num_queries=2, num_neighbors=11, choice="best").axes
    assert sorted(loaded) == list(range(100, 112))  # each image once
    unit = torch.nn.functional.normalize(images.flatten(1), dim=1)
    for row in (0, 12):
        shown = torch.stack([torch.from_numpy(np.asarray(image.get_array())) for image in axes.images[row : row + 12]])
        items = [int((images[:, 0] - picture).abs().amax((1, 2)).argmin()) for picture in shown]
        query = items[0]
        order = (unit @ unit[query]).argsort(descending=True).tolist()
        assert items == [query, *(item for item in order if item != query)]
    metric.reset()
    metric.update(images.flatten(1), labels)
    with pytest.raises(ValueError, match="this search has no data set indices"):
        draw_retrieved_images(metric.search(), load_image)


def test_neighbors_are_drawn_in_one_row_with_their_similarities():
    images = [torch.randint(0, 256, (3, 8, 6), dtype=torch.uint8) for _ in range(4)]
    (axes,) = draw_neighbors(images[0], images[1:], torch.tensor([0.91, 0.5, -0.2])).axes
    assert [text.get_text() for text in axes.texts] == ["query", "0.91", "0.50", "-0.20"]
    for image, drawn in zip(images, axes.images, strict=True):
        np.testing.assert_allclose(drawn.get_array(), to_picture(image))
    assert len({drawn.get_extent()[3] for drawn in axes.images}) == 1  # the same upper edge
