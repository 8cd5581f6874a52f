import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from lightning_recall.models import PCAWhitening


@pytest.mark.parametrize("dim", [3, 6, None])
def test_equals_scikit_learn(dim):
    mixing = torch.randn(6, 6, dtype=torch.float64)
    train, test = torch.randn(200, 6, dtype=torch.float64) @ mixing + 3, torch.randn(9, 6, dtype=torch.float64)
    whiten = PCAWhitening(train, dim, epsilon=0)
    expected = PCA(dim, whiten=True).fit(train.numpy()).transform(test.numpy())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = whiten(test).numpy()
    signs = np.sign((found * expected).sum(0))  # the sign of a component is arbitrary
    np.testing.assert_allclose(found, expected * signs, atol=1e-9)


def test_directions_without_variance_stay_small_and_the_state_reloads():
    train = torch.randn(50, 4) * torch.tensor([1.0, 1, 0, 0])
    whiten = PCAWhitening(train)
    other = PCAWhitening(torch.randn(50, 4))
    other.load_state_dict(whiten.state_dict())
    test = torch.randn(5, 4) * torch.tensor([1.0, 1, 1e-4, 1e-4])
    assert torch.isfinite(whiten(test)).all()
    assert torch.equal(whiten(test), other(test))
    assert whiten(test)[:, 2:].abs().max() < 0.5


@pytest.mark.parametrize(("rows", "dim"), [(50, 5), (50, 0), (4, 4), (3, None)])
def test_wrong_sizes_are_rejected(rows, dim):
    with pytest.raises(ValueError, match="dim must be from 1 to D = 4"):
        PCAWhitening(torch.randn(rows, 4), dim)
