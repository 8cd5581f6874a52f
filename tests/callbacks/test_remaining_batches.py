import random

import numpy as np
import pytest
import torch
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSamplerWrapper, _IndexBatchSamplerWrapper
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, TensorDataset

from lightning_recall.callbacks.index_recorder import indices_of_batch, recording_copy
from lightning_recall.callbacks.remaining_batches import without_saved

DATA = TensorDataset(torch.arange(12) * 10)
SAVED = torch.tensor([0, 1, 2, 3, 4, 7, 40])


def batches_of(loader):
    return [(batch[0] // 10).tolist() for batch in loader]


def test_items_to_compare_come_first_and_batches_are_full():
    loader, recheck_indices, num_left = without_saved(DataLoader(DATA, batch_size=5), SAVED)
    assert batches_of(loader) == [[0, 1, 2, 3, 4], [7, 5, 6, 8, 9], [10, 11]]
    assert (recheck_indices.tolist(), num_left, len(loader)) == ([0, 1, 2, 3, 4, 7], 6, 3)


def test_sixteen_of_many_are_compared():
    data = TensorDataset(torch.arange(100) * 10)
    loader, recheck_indices, num_left = without_saved(DataLoader(data, batch_size=8), torch.arange(0, 92))
    assert recheck_indices.tolist() == [round(i * 91 / 15) for i in range(16)]
    assert num_left == 8
    assert batches_of(loader) == [recheck_indices[:8].tolist(), recheck_indices[8:].tolist(), list(range(92, 100))]


def test_items_that_a_batch_sampler_puts_together_stay_together():
    loader = DataLoader(DATA, batch_sampler=[[11, 10, 9], [8, 0], [7, 6, 1], [3]])
    loader, recheck_indices, num_left = without_saved(loader, SAVED)
    assert batches_of(loader) == [[0], [7, 1], [3], [11, 10, 9], [8], [6]]
    assert (recheck_indices.tolist(), num_left) == ([0, 1, 3, 7], 5)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ([[1, 2], [9, 0]], [[1, 2], [0], [9]]),
        ([torch.tensor([1, 9]), torch.tensor([8])], [[1], [9], [8]]),
        ([1, 8, 2], [1, 2, 8]),
        (None, [0, 1, 2, 3, 4, 7, 5, 6, 8, 9, 10, 11]),
    ],
    ids=["lists", "tensors", "integers", "in order"],
)
def test_without_a_batch_size_the_sampler_is_reduced(sampler, expected):
    loader = without_saved(DataLoader(DATA, batch_size=None, sampler=sampler), SAVED).loader
    assert batches_of(loader) == expected
    assert [type(entry) for entry in loader.sampler] == [type((sampler or [0])[0])] * len(expected)


def test_all_or_nothing_may_be_saved():
    loader, recheck_indices, num_left = without_saved(DataLoader(DATA, batch_size=8), torch.arange(12))
    assert batches_of(loader) == [list(range(8)), list(range(8, 12))]
    assert (len(recheck_indices), num_left) == (12, 0)
    loader, recheck_indices, num_left = without_saved(DataLoader(DATA, batch_size=8), torch.tensor([20]))
    assert batches_of(loader) == [list(range(8)), list(range(8, 12))]
    assert (len(recheck_indices), num_left) == (0, 12)
    empty = without_saved(DataLoader(DATA, batch_sampler=BatchSampler([], 4, False)), SAVED)
    assert (len(empty.loader), len(empty.recheck_indices), empty.num_left) == (0, 0, 0)


@pytest.mark.parametrize("shuffle", [False, True])
def test_parts_of_a_distributed_sampler_complete_each_other(shuffle):
    yielded = []
    for rank in (0, 1):
        torch.manual_seed(rank)  # processes without a common seed
        before = torch.get_rng_state()
        base = RandomSampler(DATA) if shuffle else range(12)
        sampler = UnrepeatedDistributedSamplerWrapper(base, num_replicas=2, rank=rank, shuffle=shuffle)
        loader, recheck_indices, num_left = without_saved(DataLoader(DATA, batch_size=4, sampler=sampler), SAVED)
        assert torch.equal(torch.get_rng_state(), before)
        indices = [index for batch in batches_of(loader) for index in batch]
        assert set(indices[: len(recheck_indices)]) == set(recheck_indices.tolist()) <= set(SAVED.tolist())
        assert len(indices) == len(recheck_indices) + num_left == 6
        yielded += indices
    assert sorted(yielded) == list(range(12))


def test_what_is_left_can_be_recorded():
    wrapper = _IndexBatchSamplerWrapper(BatchSampler(DistributedSampler(DATA, 2, 0, shuffle=False), 3, False))
    loader = recording_copy(without_saved(DataLoader(DATA, batch_sampler=wrapper), SAVED).loader)
    recorded = recording_copy(DataLoader(DATA, batch_sampler=wrapper))
    for reduced in (loader, without_saved(recorded, SAVED).loader):  # before, or after it records
        for number, (batch,) in enumerate(reduced):
            assert torch.equal(10 * indices_of_batch(reduced, number, len(batch)), batch)
        assert reduced.batch_sampler.seen_batch_indices == [[0, 2, 4], [6, 8, 10]]


class Draws:
    """A sampler with the global generators of Python and numpy."""

    def __iter__(self):
        yield from random.sample(range(12), 6)
        yield from np.random.permutation(12)[:3].tolist()  # noqa: NPY002  # what users do

    def __len__(self):
        return 9


def test_all_processes_draw_the_same():
    yielded = []
    for rank in (0, 1):
        random.seed(rank)
        np.random.seed(rank)  # noqa: NPY002  # the generator that the sampler draws from
        before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002  # the same generator
        loader = without_saved(DataLoader(DATA, batch_size=4, sampler=Draws()), SAVED).loader
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002  # the same generator
        yielded.append(batches_of(loader))
    assert yielded[0] == yielded[1]


def test_keys_that_are_not_indices_are_refused():
    loader = DataLoader({"a": 1, "b": 2}, batch_sampler=[["a"], ["b"]])
    with pytest.raises(ValueError, match=r"must yield indices of the data set, got \['a'\]: use a map-style data set"):
        without_saved(loader, SAVED)
