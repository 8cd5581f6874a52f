import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from lightning_recall.adaptation.plots.projection import project, resolve_projection

CLUSTERS = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(30, 0) * 20
FEATURES = CLUSTERS + torch.randn(60, 8, generator=torch.Generator().manual_seed(1))


def test_principal_components_are_those_of_scikit_learn():
    expected = PCA(2).fit_transform(FEATURES.double().numpy())
    points = project(FEATURES, "pca")
    signs = np.sign((expected * points).sum(0))
    assert points == pytest.approx(expected * signs, abs=1e-9)
    assert (points[np.abs(points).argmax(0), [0, 1]] > 0).all()


@pytest.mark.parametrize("projection", ["tsne", "pca"])
def test_clusters_stay_apart_and_random_numbers_stay(projection):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002  # the generator that users draw from
    expected = torch.rand(1).item(), np.random.rand()  # noqa: NPY002  # the generator that users draw from
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002  # the generator that users draw from
    before = FEATURES.clone()
    points = project(FEATURES, projection, seed=1)
    assert (torch.rand(1).item(), np.random.rand()) == expected  # noqa: NPY002  # the generator that users draw from
    assert torch.equal(FEATURES, before)
    assert points.shape == (60, 2)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert distances[:30, :30].max() < distances[:30, 30:].min()


@pytest.mark.parametrize("shape", [(2, 5), (1, 3), (7, 1), (3, 1), (10, 3)])
@pytest.mark.parametrize("projection", ["tsne", "pca"])
def test_few_images_and_few_features(shape, projection):
    points = project(torch.arange(float(np.prod(shape))).reshape(shape), projection)
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("projection", ["tsne", "pca"])
def test_equal_features(projection):
    assert np.isfinite(project(torch.ones(20, 4), projection)).all()


def test_the_projection_depends_on_what_is_installed(monkeypatch):
    assert [resolve_projection(name) for name in ("auto", "tsne", "pca")] == ["tsne", "tsne", "pca"]
    with pytest.raises(ValueError, match="projection must be one of auto, tsne, pca, got 'umap'"):
        resolve_projection("umap")
    monkeypatch.setattr("lightning_recall.adaptation.plots.projection.find_spec", lambda _: None)
    assert resolve_projection("auto") == "pca"
    with pytest.raises(ImportError, match=r'pip install "lightning-recall\[nmi\]"'):
        resolve_projection("tsne")
