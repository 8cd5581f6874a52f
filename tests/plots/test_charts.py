import numpy as np
import pytest
import torch

from lightning_recall.metrics import GroundTruth, RecallAtK, RevisitedMAP
from lightning_recall.plots import charts as module
from lightning_recall.plots import draw_embedding_map, draw_recall_over_k, draw_retrieved_images, draw_similarities
from lightning_recall.plots.charts import charts_of


def search_result(size=60, dim=4, normalize=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    metric = RecallAtK((1,), normalize=normalize)
    metric.update(torch.randn(size, dim, generator=generator), torch.arange(size) // 4)
    return metric.search()


def test_the_curve_is_recall_at_each_k():
    result = search_result()
    (curve, *_) = draw_recall_over_k(result).axes[0].lines
    ks, values = curve.get_data()
    assert ks.tolist() == list(range(1, 61))
    for k, value in zip(ks, values, strict=True):
        assert value == pytest.approx(100 * (result.first_ranks <= k).double().mean())


@pytest.mark.parametrize("normalize", [True, False])
def test_the_histograms_count_each_pair(normalize):
    result = search_result(normalize=normalize)
    axes = draw_similarities(result, 0).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["same class: 180", "other classes: 3,360"]
    embeddings = torch.nn.functional.normalize(result.embeddings, dim=1) if normalize else result.embeddings
    similarities, same = embeddings @ embeddings.T, result.labels[:, None] == result.labels
    counted, edges = np.histogram(similarities[~same].numpy(), axes.patches[2].get_data().edges)
    drawn = axes.patches[2].get_data().values * np.diff(edges) * 3360
    np.testing.assert_allclose(drawn, counted, atol=1.5)  # float32 may put a value at an edge into either bin


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_the_map_shows_the_first_principal_components(dim):
    result = search_result(size=40, dim=dim, normalize=False)
    axes = draw_embedding_map(result, 0).axes[0]
    points = np.concatenate([part.get_offsets() for part in axes.collections])
    assert points.shape == (40, 2)
    centred = result.embeddings.double().numpy() - result.embeddings.double().numpy().mean(0)
    variances = np.sort(np.linalg.eigvalsh(centred.T @ centred))[::-1][:2]
    np.testing.assert_allclose((points**2).sum(0), np.pad(variances, (0, 2 - len(variances))), atol=1e-5)
    looks = {(part.get_facecolor()[0].tobytes(), part.get_paths()[0].vertices.tobytes()) for part in axes.collections}
    assert len(looks) == 10  # each class looks different
    assert len(axes.texts) == 10


def test_names_are_in_the_legend_of_the_map():
    names = [f"class {label} " + "x" * 50 * (label == 3) for label in range(9)]  # label 9 has none
    figure = draw_embedding_map(search_result(size=40), 0, names)
    (legend,) = figure.legends
    shown = {text.get_text() for text in legend.get_texts()}
    assert len(shown) == 10
    assert {"class 0 ", "class 8 ", "9"} <= shown
    assert max(map(len, shown)) == 40
    assert len(figure.axes[0].texts) == 0


def test_at_most_1000_queries_are_drawn_and_the_seed_chooses_them(monkeypatch):
    monkeypatch.setattr(module, "MAX_QUERIES", 8)
    result = search_result()
    axes = [draw_similarities(result, seed).axes[0] for seed in (0, 0, 1)]
    assert axes[0].get_legend().get_texts()[0].get_text() == "same class: 24"
    first, again, other = (one.patches[2].get_data() for one in axes)
    np.testing.assert_array_equal(first.values, again.values)
    assert len(first.values) != len(other.values) or (first.values != other.values).any()


def test_without_labels_there_is_no_map():
    metric = RevisitedMAP([GroundTruth([0, 1], [2], [3])])
    metric.update(torch.randn(9, 4), torch.arange(9), torch.arange(9))
    charts = charts_of(metric.search(), 0)
    assert [chart.name for chart in charts] == ["recall_over_k", "similarities"]
    for chart in charts:
        chart.draw()
    with pytest.raises(ValueError, match="draw_embedding_map needs class labels"):
        draw_embedding_map(metric.search())


def test_names_are_drawn_as_they_are(tmp_path):
    names = ["5$ or 6$ shoe", "a$x_$b", "_under", "$x_$ <b>&amp;"]
    metric = RecallAtK((1,))
    metric.update(torch.nn.functional.normalize(torch.randn(16, 4), dim=1), torch.arange(16) // 4, torch.arange(16))
    result = metric.search()
    figure = draw_embedding_map(result, class_names=names)
    figure.savefig(tmp_path / "map.png")  # matplotlib would fail for "$x_$" as a formula
    (legend,) = figure.legends
    assert sorted(text.get_text().strip() for text in legend.get_texts()) == sorted(names)
    picture = draw_retrieved_images(result, lambda _: torch.rand(3, 8, 8), 4, 2, class_names=names)
    picture.savefig(tmp_path / "pictures.png")
