import math

import pytest
import torch

from lightning_recall.adaptation.inverse_decay import InverseDecayLR


def rates(steps, lrs=(1.0,), **kwargs):
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in lrs])
    scheduler = InverseDecayLR(optimizer, **kwargs)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def test_the_released_schedule():
    expected = [[0.2 / (1 + 1e-4 * step), 3.0 / (1 + 1e-4 * step)] for step in range(5)]
    assert rates(5, lrs=(0.2, 3.0)) == [pytest.approx(row, rel=1e-15) for row in expected]


def test_rate_and_power():
    assert rates(4, rate=0.5, power=0.75)[3] == pytest.approx([2.5**-0.75], rel=1e-15)
    assert rates(4, rate=0.0) == [[1.0]] * 4


def test_numbers_out_of_range_raise():
    for rate in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="rate must be a finite number of at least 0"):
            rates(1, rate=rate)
    with pytest.raises(ValueError, match="power must be a finite number above 0, got 0"):
        rates(1, power=0.0)
