from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_recall.callbacks.index_checks import check_recorded, raise_if_indices_required
from lightning_recall.callbacks.index_recorder import recording_copy

DATA = TensorDataset(torch.zeros(4, 2))


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.zeros(4, 2)


def test_indices_may_be_unknown_where_nothing_needs_them():
    one, two = SimpleNamespace(world_size=1), SimpleNamespace(world_size=2)
    raise_if_indices_required(one, DataLoader(DATA), {})
    raise_if_indices_required(two, DataLoader(Stream()), {})
    raise_if_indices_required(two, [1, 2], {})
    with pytest.raises(ValueError, match="because several processes may evaluate the same items: use a map-style"):
        raise_if_indices_required(two, DataLoader(DATA), {})  # a distributed sampler fills up the last batch
    with pytest.raises(ValueError, match="because it has groups"):
        raise_if_indices_required(one, DataLoader(DATA), {"groups": torch.zeros(4)})
    truth = TensorDataset(torch.zeros(4, 2))
    truth.ground_truth = [([1], [], [])]
    with pytest.raises(ValueError, match="because it has a ground truth"):
        raise_if_indices_required(one, DataLoader(truth), {})


def test_each_dataloader_must_record():
    check_recorded([recording_copy(DataLoader(DATA))] * 2, "pictures")
    with pytest.raises(
        ValueError, match=r"pictures, but the indices of dataloader b \(DataLoader\) cannot be recorded"
    ):
        check_recorded({"a": recording_copy(DataLoader(DATA)), "b": DataLoader(Stream())}, "pictures")
