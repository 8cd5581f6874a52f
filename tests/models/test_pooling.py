import pytest
import torch

from lightning_recall.models import GeM


def test_between_mean_and_maximum():
    features = torch.rand(2, 3, 5, 4) + 0.1
    torch.testing.assert_close(GeM(1.0)(features), features.mean((2, 3)))
    torch.testing.assert_close(GeM(200.0)(features.double()), features.double().amax((2, 3)), rtol=0.02, atol=0)


def test_dead_activations_have_finite_gradients():
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    pooling = GeM()
    pooling(features).sum().backward()
    assert features.grad.isfinite().all()
    assert pooling.p.grad.isfinite()


@pytest.mark.parametrize("arguments", [{"p": 0.0}, {"eps": 0.0}])
def test_zero_is_refused(arguments):
    with pytest.raises(ValueError, match="must be above 0"):
        GeM(**arguments)
