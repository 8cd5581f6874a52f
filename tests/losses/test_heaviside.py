"""Sigmoids of similarity differences, compared with torch's in float64."""

import pytest
import torch

from lightning_recall.losses import heaviside
from lightning_recall.losses.heaviside import sigmoid_derivative_, sigmoid_of_differences

TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-14}  # relative; exp(86) magnifies the rounding of its argument


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("spread", [0.0, 20.0, heaviside.MAX_SPREAD, heaviside.MAX_SPREAD + 1, 150.0])
def test_equals_the_sigmoid_of_each_difference(dtype, spread):
    positives = torch.stack([torch.linspace(0, spread, 4), torch.linspace(0, spread, 4) - 70]).to(dtype)  # (q, P)
    items = torch.linspace(-300, 300, 2401, dtype=dtype).expand(2, -1).clone()  # (q, N)
    items[:, 0] = -torch.inf
    expected = (items.double()[:, None, :] - positives.double()[:, :, None]).sigmoid()
    found = sigmoid_of_differences(items, positives, torch.ones(2, 4, dtype=torch.bool), items.new_empty(2, 4, 2401))
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCES[dtype], atol=1e-21)
    assert (found[:, :, 0] == 0).all()


@pytest.mark.parametrize("padding", [500.0, -500.0])
def test_padding_with_any_similarity_is_finite(padding):
    positives, valid = torch.tensor([[1.0, padding]]), torch.tensor([[True, False]])
    found = sigmoid_of_differences(torch.tensor([[0.0, 3.0, -300.0]]), positives, valid, torch.empty(1, 2, 3))
    torch.testing.assert_close(found[0, 0], torch.tensor([-1.0, 2.0, -301.0]).sigmoid())
    assert found.isfinite().all()


def test_derivative_of_tiny_values_is_not_lost():
    values = torch.tensor([0.0, 1e-30, 0.25, 0.5, 1.0])
    torch.testing.assert_close(sigmoid_derivative_(values.clone()), values * (1 - values), rtol=1e-7, atol=0)
