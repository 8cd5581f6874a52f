from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_recall.segmentation.evaluation import Evaluation, MeanLoss, logged_metrics, num_own_images


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("count", "processes"), [(7, 2), (7, 3), (6, 3), (2, 3), (1, 4)])
def test_each_image_counts_once_over_all_processes(count, processes, shuffle):
    data, counted = TensorDataset(torch.arange(count)), []
    for rank in range(processes):
        sampler = DistributedSampler(data, processes, rank, shuffle=shuffle)
        loader = DataLoader(data, batch_size=2, sampler=sampler)
        evaluation = Evaluation(loader, 3, None, torch.device("cpu"))
        for (indices,) in loader:
            counted += indices[: evaluation.num_counted(len(indices))].tolist()
    assert sorted(counted) == list(range(count))


def test_other_samplers_repeat_nothing():
    data = TensorDataset(torch.arange(7))
    assert num_own_images(DataLoader(data, batch_size=2)) is None
    assert num_own_images(DataLoader(data, sampler=DistributedSampler(data, 2, 0, drop_last=True))) is None
    assert num_own_images([1, 2]) is None
    evaluation = Evaluation([], 3, None, torch.device("cpu"))
    assert evaluation.num_counted(5) == 5


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
