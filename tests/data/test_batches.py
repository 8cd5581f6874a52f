import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_recall.data import ImagesInMemory, batches
from lightning_recall.data.batches import (
    BatchLoader,
    EvaluationItems,
    EvaluationSampler,
    RepeatedIndex,
    ShuffledBatchSampler,
)


class Numbers(TensorDataset):
    """Item i is (i, label i)."""

    name = "numbers"

    def __init__(self, count=10):
        super().__init__(torch.arange(count), torch.arange(count))


def as_process(monkeypatch, rank, world_size):
    monkeypatch.setattr(batches, "rank_and_world_size", lambda: (rank, world_size))


def test_each_image_once_and_another_order_each_epoch():
    sampler = ShuffledBatchSampler(9, 3)
    epochs = [[index for batch in sampler for index in batch] for _ in range(3)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    sampler.set_epoch(1)
    assert [index for batch in sampler for index in batch] == epochs[1]


@pytest.mark.parametrize(("count", "size", "sizes"), [(10, 4, [4, 4]), (3, 8, [3]), (8, 4, [4, 4]), (1, 1, [1])])
def test_the_last_incomplete_batch_is_left_out_unless_it_is_the_only_one(count, size, sizes):
    sampler = ShuffledBatchSampler(count, size)
    assert [len(batch) for batch in sampler] == sizes
    assert len(sampler) == len(sizes)


def test_processes_share_a_batch(monkeypatch):
    whole = list(ShuffledBatchSampler(20, 6))
    parts = []
    for rank in range(3):
        as_process(monkeypatch, rank, 3)
        parts.append(list(ShuffledBatchSampler(20, 6)))
    assert [[*a, *b, *c] for a, b, c in zip(*parts, strict=True)] == whole
    few = ShuffledBatchSampler(5, 6)
    assert [len(batch) for batch in few] == [1]  # of 3 images
    with pytest.raises(ValueError, match=r"batch_size=4 .* multiple of their number, 3: choose 6"):
        list(ShuffledBatchSampler(20, 4))
    with pytest.raises(ValueError, match="2 training images cannot be split over 3 processes"):
        list(ShuffledBatchSampler(2, 6))


def test_without_reshuffling_epochs_are_equal():
    sampler = ShuffledBatchSampler(9, 3, reshuffle=False)
    assert list(sampler) == list(sampler)


def test_a_loader_yields_whole_batches_and_resumes():
    loader = BatchLoader(Numbers(), ShuffledBatchSampler(10, 4))
    list(loader)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    rest = [batch[0].tolist() for batch in iterator]
    resumed = BatchLoader(Numbers(), ShuffledBatchSampler(10, 4))
    resumed.load_state_dict(state)
    assert [batch[0].tolist() for batch in resumed] == rest
    assert [len(batch) for batch in rest] == [4]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_scores_each_image_once(world_size):
    data = EvaluationItems(Numbers(), -1)
    seen, lengths = [], set()
    for rank in range(world_size):
        sampler = EvaluationSampler(data, rank, world_size)
        indices = list(sampler)
        lengths.add(len(indices))
        assert len(sampler) == len(indices)
        for index in indices:
            item, label = data[index]
            assert item == index
            assert (label == -1) == isinstance(index, RepeatedIndex)
            seen += [int(label)] * (label != -1)
    assert sorted(seen) == list(range(10))
    assert len(lengths) == 1
    assert data.name == "numbers"


def test_a_loader_sees_which_images_are_repeated():
    data = EvaluationItems(ImagesInMemory(np.zeros((3, 3, 2, 2), np.uint8), np.arange(3)), -1)
    parts = [DataLoader(data, 2, sampler=EvaluationSampler(data, rank, 2)) for rank in range(2)]
    assert [labels.tolist() for part in parts for _, labels in part] == [[0, 2], [1, -1]]
