import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_recall.compression import PCA, truncate


def embeddings(num=60, dim=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=generator) * torch.linspace(1, 3, dim) + 0.5


def test_truncation_keeps_leading_dimensions_at_unit_length():
    x = embeddings()
    expected = x.numpy()[:, :5] / np.linalg.norm(x.numpy()[:, :5], axis=1, keepdims=True)
    torch.testing.assert_close(truncate(x, 5), torch.from_numpy(expected))
    with pytest.raises(ValueError, match="at most 12, the dimension of the embeddings, got 13"):
        truncate(x, 13)


@pytest.mark.parametrize("num", [60, 5000])  # 5,000: two blocks
def test_pca_is_that_of_scikit_learn(num):
    decomposition = pytest.importorskip("sklearn.decomposition")  # an extra
    x, others = embeddings(num), embeddings(7, seed=1)
    reference = decomposition.PCA(4, svd_solver="full").fit(F.normalize(x.double()).numpy())
    projected = torch.from_numpy(reference.transform(F.normalize(others.double()).numpy()))
    ours = PCA.fit(x)(others, 4)
    torch.testing.assert_close(ours @ ours.T, F.normalize(projected).float() @ F.normalize(projected).float().T)
    signs = (ours[0] * projected[0]).sign().float()  # a component's sign is arbitrary
    torch.testing.assert_close(ours * signs, F.normalize(projected).float(), rtol=1e-4, atol=1e-5)


def test_pca_has_as_many_components_as_its_embeddings_span():
    pca = PCA.fit(embeddings(num=5))
    assert pca.components.shape == (4, 12)
    with pytest.raises(ValueError, match="at most 4, the number of components, got 5: fit PCA on more"):
        pca(embeddings(), 5)
    with pytest.raises(ValueError, match="at least 2 embeddings, got 1"):
        PCA.fit(embeddings(num=1))
