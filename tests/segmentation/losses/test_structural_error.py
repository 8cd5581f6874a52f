import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from lightning_recall.segmentation.losses.structural_error import (
    gaussian_window,
    local_mean,
    local_moments,
    structural_error,
    window_shares,
)


def maps(*shape):
    torch.manual_seed(0)
    return torch.rand(shape, dtype=torch.float64)


def square():
    truth = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    truth[..., 3:9, 3:9] = 1
    return truth


@pytest.mark.parametrize(
    ("predict", "mean", "largest"),
    [
        (lambda y: torch.full_like(y, 0.5), 0.33667, 1.63149),
        (lambda y: 1 - y, 0.42069, 2.04434),
        (lambda y: 0.3 + 0.4 * y, 0.01126, 0.06040),
        (lambda y: y, 0, 0),
    ],
)
def test_a_square(predict, mean, largest):
    truth = square()
    error = structural_error(truth, predict(truth), window_shares(gaussian_window(3, 1.5), None, 2))
    assert (error.mean().item(), error.max().item()) == pytest.approx((mean, largest), abs=1e-5)


@pytest.mark.parametrize(("size", "std"), [(3, 1.5), (5, 0.8), (11, 1.5)])
def test_moments_equal_those_of_torchvision_and_scipy(size, std):
    ndimage = pytest.importorskip("scipy.ndimage")  # a test tool
    values = maps(2, 3, 14, 13)
    mean, variance = local_moments(values, window_shares(gaussian_window(size, std), None, 2))
    inner = slice(size // 2, -(size // 2))
    blurred = gaussian_blur(values, [size, size], [std, std])  # its window is in fp32, its padding reflects
    torch.testing.assert_close(mean[..., inner, inner], blurred[..., inner, inner], atol=1e-6, rtol=0)
    kernel = np.outer(*[np.exp(-(np.arange(-(size // 2), size // 2 + 1) ** 2) / (2 * std**2))] * 2)[None, None]
    kernel /= kernel.sum()
    expected = [ndimage.correlate(v, kernel, mode="nearest") for v in (values.numpy(), values.numpy() ** 2)]
    np.testing.assert_allclose(mean, expected[0], atol=1e-13)
    np.testing.assert_allclose(variance, expected[1] - expected[0] ** 2, atol=1e-13)
    assert torch.equal(local_mean(values, window_shares(gaussian_window(size, std), None, 2)), mean)


def test_masked_moments_equal_loops():
    values, valid = maps(1, 1, 5, 4), (maps(1, 1, 5, 4).flip(2) > 0.5).double()
    window = gaussian_window(3, 1.5)
    mean, variance = local_moments(values, window_shares(window, valid, 2))
    checked = 0
    for i in range(5):
        for j in range(4):
            near = [
                (window[a + 1] * window[b + 1], min(max(i + a, 0), 4), min(max(j + b, 0), 3))
                for a in (-1, 0, 1)
                for b in (-1, 0, 1)
            ]
            pairs = [(w, values[0, 0, y, x].item()) for w, y, x in near if valid[0, 0, y, x]]
            total = sum(w for w, _ in pairs)
            if total:
                expected = sum(w * v for w, v in pairs) / total
                assert mean[0, 0, i, j].item() == pytest.approx(expected, abs=1e-14)
                spread = sum(w * (v - expected) ** 2 for w, v in pairs) / total
                assert variance[0, 0, i, j].item() == pytest.approx(spread, abs=1e-14)
                checked += 1
    assert checked > 15


@pytest.mark.parametrize("value", [0.0, 1.0, 1 - 2**-24, 1e-30, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_flat_areas_are_exactly_flat_in_fp32(value, masked):
    values = torch.full((2, 3, 9, 8), value)
    valid = (maps(2, 1, 9, 8) > 0.4).float() if masked else None
    mean, variance = local_moments(values, window_shares(gaussian_window(3, 1.5), valid, 2))
    assert torch.equal(mean, values)
    assert (variance == 0).all()


def test_the_error_has_an_upper_bound():
    """A value is at most sqrt((1 - c) / c) standard deviations from the mean, with c its weight."""
    window = gaussian_window(3, 1.5)
    bound = 2 * math.sqrt((1 - window[1] ** 2) / window[1] ** 2)
    assert bound == pytest.approx(4.803, abs=1e-3)
    truth = (maps(8, 4, 20, 20) > 0.5).double()
    single = torch.zeros_like(truth)
    single[..., ::3, ::3] = 1
    for y, p in ((truth, maps(8, 4, 20, 20)), (single, 1 - single), (single, 1 - 1e-3 * single)):
        error = structural_error(y, p, window_shares(window, None, 2))
        assert 0.5 < error.max() <= bound


@pytest.mark.parametrize("shape", [(9,), (4, 5, 6)])
def test_any_number_of_dimensions(shape):
    values = maps(1, 1, *shape)
    mean, variance = local_moments(values, window_shares(gaussian_window(3, 1.5), None, len(shape)))
    centre = tuple(size // 2 for size in shape)
    near = values[0, 0][tuple(slice(c - 1, c + 2) for c in centre)]
    weight = torch.ones(())
    for _ in shape:
        weight = weight[..., None] * torch.tensor(gaussian_window(3, 1.5), dtype=torch.float64)
    expected = (weight * near).sum()
    assert mean[0, 0][centre].item() == pytest.approx(expected.item(), abs=1e-14)
    assert variance[0, 0][centre].item() == pytest.approx((weight * (near - expected) ** 2).sum().item(), abs=1e-14)
