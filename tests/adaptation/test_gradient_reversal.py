import math

import pytest
import torch
from torch import nn

from lightning_recall.adaptation.gradient_reversal import GradientReversal, reversal_strength, reverse_gradient

X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 2.0])
def test_the_gradient_is_minus_alpha_times_that_of_the_function(alpha):
    x, plain = (X.clone().requires_grad_() for _ in range(2))
    outputs = reverse_gradient(x, alpha)
    assert torch.equal(outputs, X)
    outputs.square().sum().backward()
    plain.square().sum().backward()
    assert torch.equal(x.grad, -alpha * plain.grad)


def test_numeric_gradients_agree_with_the_negated_function():
    """The reversal before a function has the gradient of -alpha times the function."""
    layer, x = nn.Linear(3, 1).double(), X.clone().requires_grad_()
    (found,) = torch.autograd.grad(layer(reverse_gradient(x, 0.7)).tanh().sum(), x)
    assert torch.autograd.gradcheck(lambda inputs: -0.7 * layer(inputs).tanh().sum(), [x])
    (expected,) = torch.autograd.grad(-0.7 * layer(x).tanh().sum(), x)
    torch.testing.assert_close(found, expected, atol=1e-15, rtol=0)


def test_the_layer_has_the_alpha_that_it_is_given_later():
    layer, x = GradientReversal(), X.clone().requires_grad_()
    layer.alpha = 0.25
    layer(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(X, -0.25))
    assert repr(layer) == "GradientReversal(alpha=0.25)"


def test_the_strength_rises_from_0_towards_1():
    for progress in (0.0, 0.2, 0.5, 1.0):
        assert reversal_strength(progress) == pytest.approx(math.tanh(5 * progress), abs=1e-15)
        assert reversal_strength(progress, gamma=4.0) == pytest.approx(math.tanh(2 * progress), abs=1e-15)


def test_numbers_out_of_range_raise():
    for alpha in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="alpha must be at least 0 and finite"):
            GradientReversal(alpha)
    for progress in (-0.1, math.nan):
        with pytest.raises(ValueError, match="progress must be at least 0"):
            reversal_strength(progress)
