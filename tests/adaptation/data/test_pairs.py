import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_recall.adaptation.data import DomainPairs, PairedBatchSampler, PairedLoader
from lightning_recall.data import batches


class AddNoise(nn.Module):
    """Adds a random number to all pixels of an image."""

    def forward(self, image):
        return image + torch.randint(100, (1,))


class Guarded:
    """Items whose label must not be read."""

    class Item(tuple):
        __slots__ = ()

        def __getitem__(self, index):
            assert index == 0, "the label was read"
            return super().__getitem__(index)

    def __getitem__(self, index):
        return self.Item((torch.full((3, 2, 2), index), index))


def domains(num_source=7, num_target=10):
    """Source image i is i with label i, target image j is 100 + j."""
    source = torch.arange(num_source)
    target = 100 + torch.arange(num_target)

    def image(values):
        return values[:, None, None, None].expand(-1, 3, 2, 2)

    return DomainPairs(TensorDataset(image(source), source), TensorDataset(image(target)))


def contents(loader):
    return [(b["source"][0].tolist(), b["source"][1].tolist(), b["target"].tolist()) for b in loader]


def as_process(monkeypatch, rank, world_size):
    monkeypatch.setattr(batches, "rank_and_world_size", lambda: (rank, world_size))


@pytest.mark.parametrize(("num_source", "num_target"), [(7, 10), (10, 7), (6, 6)])
def test_order_of_draws(num_source, num_target):
    sampler = PairedBatchSampler(num_source, num_target, 3, seed=4)
    for epoch in range(3):
        rng = np.random.default_rng((4, epoch))
        source = rng.permutation(num_source)
        target = rng.permutation(num_target)
        expected = [[(source[number * 3 + i], target[number * 3 + i]) for i in range(3)] for number in range(2)]
        assert list(sampler) == expected
    assert len(sampler) == 2


@pytest.mark.parametrize("swap", [False, True])
def test_the_shorter_domain_is_repeated_in_a_new_order_each_time(swap):
    sizes = (20, 4) if swap else (4, 20)
    sampler = PairedBatchSampler(*sizes, 6, epoch_length="longer")
    pairs = [pair for batch in sampler for pair in batch]
    longer, shorter = (
        list(column) for column in (zip(*pairs, strict=True) if swap else zip(*map(reversed, pairs), strict=True))
    )
    assert len(sampler) == 3
    assert len(set(longer)) == 18
    rounds = [shorter[start : start + 4] for start in range(0, 16, 4)]
    assert all(sorted(each) == [0, 1, 2, 3] for each in rounds)
    assert len(set(map(tuple, rounds))) > 1


@pytest.mark.parametrize(("epoch_length", "lengths"), [("shorter", [4]), ("longer", [8, 8])])
def test_a_domain_smaller_than_a_batch(epoch_length, lengths):
    sampler = PairedBatchSampler(4, 20, 8, epoch_length=epoch_length)
    assert [len(batch) for batch in sampler] == lengths
    assert len(sampler) == len(lengths)


@pytest.mark.parametrize("epoch_length", ["shorter", "longer"])
def test_processes_share_a_batch(monkeypatch, epoch_length):
    whole = list(PairedBatchSampler(13, 20, 6, epoch_length=epoch_length))
    parts = []
    for rank in range(3):
        as_process(monkeypatch, rank, 3)
        parts.append(list(PairedBatchSampler(13, 20, 6, epoch_length=epoch_length)))
    assert [[*a, *b, *c] for a, b, c in zip(*parts, strict=True)] == whole
    with pytest.raises(ValueError, match=r"batch_size=4 .* multiple of their number, 3: choose 6"):
        list(PairedBatchSampler(20, 20, 4))


def test_without_reshuffling_epochs_are_equal():
    sampler = PairedBatchSampler(9, 7, 3, reshuffle=False)
    assert list(sampler) == list(sampler)
    sampler = PairedBatchSampler(9, 7, 3)
    assert list(sampler) != list(sampler)


def test_invalid_settings():
    with pytest.raises(ValueError, match='epoch_length must be "shorter" or "longer", got \'longest\''):
        PairedBatchSampler(5, 5, 2, epoch_length="longest")
    with pytest.raises(ValueError, match="num_target must be at least 1, got 0"):
        PairedBatchSampler(5, 0, 2)


def test_a_batch_holds_images_and_labels_of_the_source_and_images_of_the_target():
    loader = PairedLoader(domains(), PairedBatchSampler(7, 10, 3))
    for batch, pairs in zip(loader, PairedBatchSampler(7, 10, 3), strict=True):
        images, labels = batch["source"]
        assert labels.tolist() == images[:, 0, 0, 0].tolist() == [source for source, _ in pairs]
        assert batch["target"][:, 2, 1, 1].tolist() == [100 + target for _, target in pairs]
        assert batch["target"].shape == images.shape == (3, 3, 2, 2)


def test_labels_of_the_target_are_not_read():
    pairs = DomainPairs([(torch.zeros(3, 2, 2), 5)], Guarded(), nn.Identity())
    _, label, target = pairs[0, 3]
    assert (target == 3).all()
    assert label == 5


def test_transforms_do_not_depend_on_workers():
    data = domains()
    data.transform = AddNoise()
    loaders = [PairedLoader(data, PairedBatchSampler(7, 10, 3), num_workers=n) for n in (0, 2)]
    torch.manual_seed(5)
    first = contents(loaders[0])
    assert first == contents(loaders[1])
    noise = [np.ravel(images)[::12] - np.array(labels) for images, labels, _ in first]
    assert len(set(np.concatenate(noise))) > 3  # each image has its own


def test_processes_draw_the_transforms_of_one(monkeypatch):
    data = domains()
    data.transform = AddNoise()
    whole = contents(PairedLoader(data, PairedBatchSampler(7, 10, 4)))
    as_process(monkeypatch, 1, 2)
    part = contents(PairedLoader(data, PairedBatchSampler(7, 10, 4)))
    assert part == [tuple(values[2:] for values in batch) for batch in whole]


@pytest.mark.parametrize("epoch_length", ["shorter", "longer"])
def test_resuming_in_the_middle_of_an_epoch(epoch_length):
    def build(size=2):
        return PairedLoader(domains(), PairedBatchSampler(7, 10, size, epoch_length=epoch_length))

    loader = build()
    list(loader)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    rest = contents(iterator)
    resumed = build()
    resumed.load_state_dict(state)
    assert contents(resumed) == rest
    assert len(rest) == {"shorter": 2, "longer": 4}[epoch_length]
    other = PairedLoader(domains(), PairedBatchSampler(7, 9, 2, epoch_length=epoch_length))
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="num_target=9: the epoch was started with num_target=10"):
        list(other)


def test_images_of_different_shapes():
    pairs = DomainPairs([(torch.zeros(3, 4, 4), 0)] * 2, [torch.zeros(1, 4, 4)] * 2)
    with pytest.raises(ValueError, match=r"such as \(1, 4, 4\) and \(3, 4, 4\), cannot form a batch"):
        list(PairedLoader(pairs, PairedBatchSampler(2, 2, 2)))
