import pytest
import torch

from lightning_recall.models import GeM


def test_lies_between_mean_and_maximum():
    features = torch.rand(2, 3, 5, 4) + 0.1
    torch.testing.assert_close(GeM(1.0)(features), features.mean((2, 3)))
    torch.testing.assert_close(GeM(200.0)(features.double()), features.double().amax((2, 3)), rtol=0.02, atol=0)


def test_zero_activations_have_finite_gradients():
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    pooling = GeM()
    pooling(features).sum().backward()
    assert features.grad.isfinite().all()
    assert pooling.p.grad.isfinite()


@pytest.mark.parametrize("arguments", [{"p": 0.0}, {"eps": 0.0}])
def test_zero_is_rejected(arguments):
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        GeM(**arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("largest", [40, 100, 60_000])
def test_half_precision_is_pooled_in_fp32(dtype, largest):
    features = (torch.rand(2, 3, 7, 7) * largest).to(dtype)
    expected = features.double().pow(3).mean((2, 3)).pow(1 / 3)
    module = GeM().to(dtype)  # like module.half()
    found = module(features)
    assert found.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=eps, atol=0)
    found.float().sum().backward()
    assert module.p.grad.isfinite()
    with torch.autocast("cpu", torch.bfloat16):
        cast = GeM()(features)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast.double(), expected, rtol=1e-6, atol=0)


def test_gradients_are_those_of_the_formula():
    features = (torch.rand(2, 3, 4, 5, dtype=torch.float64) * 50).requires_grad_()
    pooling = GeM(2.5).double()
    leaves = (features, pooling.p)
    expected = features.pow(pooling.p).mean((2, 3)).pow(1 / pooling.p)
    weights = torch.randn(2, 3, dtype=torch.float64)
    ours, plain = (torch.autograd.grad((value * weights).sum(), leaves) for value in (pooling(features), expected))
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=0)


@pytest.mark.parametrize("value", [0.0, 1e-3, 1e5])
def test_a_large_exponent_neither_overflows_nor_vanishes(value):
    features = torch.full((1, 2, 3, 3), value).requires_grad_()
    pooling = GeM(12.0)  # 1e-6 to the 12th is 0 in fp32, 1e5 infinite
    pooled = pooling(features)
    torch.testing.assert_close(pooled, torch.full((1, 2), max(value, 1e-6)))
    pooled.sum().backward()
    assert pooling.p.grad.isfinite()
    torch.testing.assert_close(features.grad, torch.full((1, 2, 3, 3), 1 / 9 if value else 0.0))


def test_eps_may_be_changed_later():
    pooling, features = GeM(), torch.zeros(1, 1, 2, 2)
    pooling.eps = 0.5
    assert pooling(features).item() == pytest.approx(0.5)
    pooling.eps = 0.0
    with pytest.raises(ValueError, match=r"eps must be a finite number above 0, got 0\.0"):
        pooling(features)
