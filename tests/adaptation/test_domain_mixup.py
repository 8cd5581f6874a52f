import math

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_recall.adaptation.domain_mixup import DomainMixup

RATIOS = [DomainMixup().draw(torch.Generator().manual_seed(seed)) for seed in range(2000)]


def test_ratios_have_two_decimals_and_are_never_near_one_half():
    assert all(abs(100 * ratio - round(100 * ratio)) < 1e-9 for ratio in RATIOS)
    assert all(0 <= ratio <= 0.4 or 0.6 <= ratio <= 1 for ratio in RATIOS)
    assert {0.4, 0.6} < set(RATIOS)


def test_ratios_have_the_beta_distribution_outside_the_interval():
    for low, high in ((0.0, 0.2), (0.2, 0.395), (0.605, 0.8), (0.8, 1.0)):
        expected = stats.beta(2, 2).cdf(high) - stats.beta(2, 2).cdf(low)
        assert np.mean([low < ratio <= high for ratio in RATIOS]) == pytest.approx(expected, abs=0.03)
    low = stats.beta(2, 2).cdf(0.5) - stats.beta(2, 2).cdf(0.395)
    assert np.mean([ratio == 0.4 for ratio in RATIOS]) == pytest.approx(low, abs=0.03)


def test_alpha_is_the_parameter_of_the_distribution():
    drawn = [DomainMixup(alpha=20.0, clip=0.0).draw(torch.Generator().manual_seed(seed)) for seed in range(500)]
    assert np.std(drawn) == pytest.approx(stats.beta(20, 20).std(), rel=0.15)


def test_a_ratio_depends_on_the_generator_only():
    torch.manual_seed(1)
    first = DomainMixup().draw(torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    assert DomainMixup().draw(torch.Generator().manual_seed(3)) == first


@pytest.mark.parametrize(
    ("ratio", "clip", "expected"),
    [(0.5, 0.1, 0.6), (0.49, 0.1, 0.4), (0.51, 0.3, 0.8), (0.3, 0.3, 0.2), (0.9, 0.1, 0.9), (0.5, 0.0, 0.5)],
)
def test_ratios_near_one_half_are_moved(ratio, clip, expected):
    assert DomainMixup(clip=clip).clipped(ratio) == pytest.approx(expected, abs=1e-15)


def test_a_mix_is_the_weighted_mean_and_ratio_1_gives_the_source():
    source, target = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    mixup = DomainMixup()
    assert torch.equal(mixup.mix(source, target, 1.0), source)
    assert torch.equal(mixup.mix(source, target, 0.0), target)
    expected = 0.3 * source.numpy().astype(float) + 0.7 * target.numpy().astype(float)
    np.testing.assert_allclose(mixup.mix(source, target, 0.3).numpy(), expected, atol=1e-7)


def test_levels_may_be_a_list_or_one_name():
    assert DomainMixup(levels=["pixel"]) == DomainMixup(levels=("pixel",)) == DomainMixup(levels="pixel")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha must be a finite number above 0, got 0"),
        ({"alpha": math.nan}, "alpha must be a finite number above 0"),
        ({"clip": 0.5}, "clip must be at least 0 and below 0.5, got 0.5"),
        ({"clip": -0.1}, "clip must be at least 0"),
        ({"levels": ()}, 'levels must hold "pixel", "feature" or both, got'),
        ({"levels": ("image",)}, "levels must hold"),
        ({"levels": ("pixel", "pixel")}, "levels must hold"),
    ],
)
def test_numbers_out_of_range_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        DomainMixup(**settings)


def test_mixes_of_different_shapes_or_ratios_out_of_range_raise():
    with pytest.raises(ValueError, match=r"equal shapes of source and target, got \(2, 3\) and \(1, 3\): use equal"):
        DomainMixup().mix(torch.zeros(2, 3), torch.zeros(1, 3), 0.5)
    for ratio in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="mixing ratio must be from 0 to 1"):
            DomainMixup().mix(torch.zeros(2), torch.zeros(2), ratio)
