from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_recall.callbacks.index_checks import check_needless, check_recorded
from lightning_recall.callbacks.index_recorder import recording

DATA = TensorDataset(torch.zeros(4, 2))


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.zeros(4, 2)


def test_rows_may_be_unknown_where_nothing_needs_them():
    one, two = SimpleNamespace(world_size=1), SimpleNamespace(world_size=2)
    check_needless(one, DataLoader(DATA), {})
    check_needless(two, DataLoader(Stream()), {})
    check_needless(two, [1, 2], {})
    with pytest.raises(ValueError, match="since several processes may evaluate the same rows: evaluate a map-style"):
        check_needless(two, DataLoader(DATA), {})  # a distributed sampler fills up the last batch
    with pytest.raises(ValueError, match="since it has groups"):
        check_needless(one, DataLoader(DATA), {"groups": torch.zeros(4)})
    truth = TensorDataset(torch.zeros(4, 2))
    truth.ground_truth = [([1], [], [])]
    with pytest.raises(ValueError, match="since it has a ground truth"):
        check_needless(one, DataLoader(truth), {})


def test_each_dataloader_must_record():
    check_recorded([recording(DataLoader(DATA))] * 2, "pictures")
    with pytest.raises(ValueError, match=r"pictures, but those of dataloader b \(DataLoader\) are not known"):
        check_recorded({"a": recording(DataLoader(DATA)), "b": DataLoader(Stream())}, "pictures")
