import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lightning_recall.callbacks.batches import loader_at, rows_in_order


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(5)


def test_rows_are_told_only_where_the_order_is_known():
    data = torch.arange(5)
    share = DistributedSampler(data, num_replicas=2, rank=1, shuffle=False)
    assert rows_in_order(DataLoader(data)) == [0, 1, 2, 3, 4]
    assert rows_in_order(DataLoader(data, sampler=share)) == [1, 3, 0]  # padded
    assert rows_in_order(DataLoader(data, shuffle=True)) is None
    assert rows_in_order(DataLoader(Stream())) is None
    assert rows_in_order([1, 2]) is None


def test_one_loader_is_no_list():
    one = DataLoader(torch.arange(5))
    assert loader_at(one, 0) is one
    assert loader_at(["a", "b"], 1) == "b"
