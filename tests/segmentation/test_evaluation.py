from types import SimpleNamespace

import pytest
import torch

from lightning_recall.segmentation.evaluation import MeanLoss, logged_metrics


def test_the_mean_loss_is_weighted_and_keeps_nan():
    mean = MeanLoss()
    mean.update(torch.tensor(1.5), 4)
    mean.update(torch.tensor(3.0), 2)
    mean.update(torch.tensor(9.0), 0)
    assert mean.compute() == 2.0
    mean.update(torch.tensor(torch.nan), 1)
    assert mean.compute().isnan()


@pytest.mark.parametrize(
    ("loaders", "enabled", "expected"),
    [
        (None, True, ["val/loss", "val/miou"]),
        ([1], True, ["val/loss", "val/miou"]),
        ([1, 2], True, ["val/0/loss", "val/1/loss", "val/0/miou", "val/1/miou"]),
        ({"day": 1, "night": 2}, True, ["val/day/loss", "val/night/loss", "val/day/miou", "val/night/miou"]),
        ([1], False, []),
    ],
)
def test_the_keys_that_will_be_logged(loaders, enabled, expected):
    trainer = SimpleNamespace(val_dataloaders=loaders, enable_validation=enabled)
    metrics = logged_metrics(trainer, ["road"])
    assert [key for key in metrics.keys if key.endswith(("loss", "miou"))] == ["train/loss", *expected]
    assert set(metrics.lower_is_better) == {key for key in metrics.keys if key.endswith("loss")}
    assert set(metrics.lower_is_better).isdisjoint(metrics.higher_is_better)
