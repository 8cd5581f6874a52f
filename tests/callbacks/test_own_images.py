import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_recall.callbacks.own_images import OwnImages, num_own_images


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("count", "processes"), [(7, 2), (7, 3), (6, 3), (2, 3), (1, 4)])
def test_each_image_counts_once_over_all_processes(count, processes, shuffle):
    data, counted = TensorDataset(torch.arange(count)), []
    for rank in range(processes):
        sampler = DistributedSampler(data, processes, rank, shuffle=shuffle)
        loader = DataLoader(data, batch_size=2, sampler=sampler)
        images = OwnImages(loader)
        for (indices,) in loader:
            counted += indices[: images.num_counted(len(indices))].tolist()
    assert sorted(counted) == list(range(count))


def test_other_samplers_repeat_nothing():
    data = TensorDataset(torch.arange(7))
    assert num_own_images(DataLoader(data, batch_size=2)) is None
    assert num_own_images(DataLoader(data, sampler=DistributedSampler(data, 2, 0, drop_last=True))) is None
    assert num_own_images([1, 2]) is None
    assert OwnImages([]).num_counted(5) == 5
