import copy
import random
import time

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from lightning_recall import ClassBalancedBatchSampler
from lightning_recall.data import ChunkLoader, ImagesInMemory

LABELS = np.repeat(np.arange(10), 6)


def images_in_memory():
    images = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 1, 8, 8)).copy()
    return ImagesInMemory(images, LABELS)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("chunk_size", [5, 8, 100])
def test_a_batch_is_a_list_of_chunks(chunk_size, num_workers):
    sampler = ClassBalancedBatchSampler(LABELS, 16, 2)
    loader = ChunkLoader(images_in_memory(), sampler, chunk_size, num_workers=num_workers)
    batches = list(loader)
    assert len(batches) == len(loader) == len(sampler)
    sampler.set_epoch(0)
    for chunks, indices in zip(batches, sampler, strict=True):
        assert all(len(images) == len(labels) <= chunk_size for images, labels in chunks)
        assert torch.cat([images for images, _ in chunks])[:, 0, 0, 0].tolist() == indices
        assert torch.cat([labels for _, labels in chunks]).tolist() == LABELS[indices].tolist()
        assert chunks[0][0].dtype == torch.uint8


def test_slices_of_the_processes_make_up_each_batch():
    whole, slices = ClassBalancedBatchSampler(LABELS, 16, 2), []
    for rank in range(2):
        sampler = ClassBalancedBatchSampler(LABELS, 16, 2)
        sampler.shard = rank, 2
        loader = ChunkLoader(images_in_memory(), sampler, 4)
        slices.append([torch.cat([i for i, _ in chunks])[:, 0, 0, 0].tolist() for chunks in loader])
    assert [a + b for a, b in zip(*slices, strict=True)] == list(whole)


class Noise(torch.utils.data.Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        return torch.rand(2) + np.random.rand() + random.random(), index  # noqa: NPY002  # the generator that augmentations draw from


def test_augmentation_depends_on_the_position_in_the_global_batch():
    def drawn(shard, chunk_size):
        sampler = ClassBalancedBatchSampler(LABELS, 16, 2)
        sampler.shard = shard
        return [torch.cat([noise for noise, _ in chunks]) for chunks in ChunkLoader(Noise(), sampler, chunk_size)]

    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002  # the same generator
    whole, first, second = drawn((0, 1), 16), drawn((0, 2), 3), drawn((1, 2), 5)
    for batch, *slices in zip(whole, first, second, strict=True):
        assert torch.equal(torch.cat(slices), batch)
        assert len(batch.unique()) == batch.numel()
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002  # the same generator
    assert torch.equal(torch.get_rng_state(), state[2])


def test_no_two_positions_draw_the_same_random_numbers():
    class InChunks(Noise):
        def __getitems__(self, indices):
            return [self[index] for index in indices]

    for dataset in (Noise(), InChunks()):
        drawn = []
        for seed in (1, 2):
            loader = ChunkLoader(dataset, ClassBalancedBatchSampler(LABELS, 16, 2, seed), 5)
            drawn += [noise for _ in range(2) for chunks in loader for noise, _ in chunks]  # two epochs
        drawn = torch.cat(drawn)
        assert len(drawn.unique()) == drawn.numel()
        loader.sampler.set_epoch(1)
        torch.rand(1)
        again = torch.cat([noise for chunks in loader for noise, _ in chunks])
        assert torch.equal(again, drawn[-len(again) :])


def test_a_resumed_epoch_yields_the_remaining_batches():
    def drawn(loader):
        return [torch.cat([noise for noise, _ in chunks]) for chunks in loader]

    loader, resumed = (ChunkLoader(Noise(), ClassBalancedBatchSampler(LABELS, 16, 2), 5) for _ in range(2))
    whole = drawn(loader)
    resumed.load_state_dict({"epoch": 0, "batches": 1})
    for expected, found in zip(whole[1:], drawn(resumed), strict=True):
        assert torch.equal(found, expected)
    for expected, found in zip(drawn(loader), drawn(resumed), strict=True):  # the next epoch is whole
        assert torch.equal(found, expected)


def test_each_iteration_is_a_new_epoch_that_lightning_can_set():
    loader = ChunkLoader(images_in_memory(), ClassBalancedBatchSampler(LABELS, 16, 2), 16)

    def epoch():
        return [chunks[0][0][:, 0, 0, 0].tolist() for chunks in loader]

    first, second = epoch(), epoch()
    assert first != second
    loader.sampler.set_epoch(0)
    assert epoch() == first


def test_epochs_may_differ_in_length():
    labels = np.repeat(np.arange(7), [8, 8, 8, 12, 12, 8, 4])
    sampler = ClassBalancedBatchSampler(np.stack([labels, labels % 3], 1), 12, 4, super_classes=1)
    loader = ChunkLoader(images_in_memory(), sampler, 5)
    lengths = [(len(loader), len(list(loader))) for _ in range(8)]
    assert all(announced == found for announced, found in lengths)
    assert len(set(lengths)) > 1
    for _ in range(8):
        assert len(list(loader)) == loader.state_dict()["num_batches"]  # of the epoch that has ended, not of the next


def test_an_item_that_fails_leaves_the_random_numbers_unchanged():
    class Fails(Noise):
        def __getitem__(self, index):
            raise OSError(f"no image {index}")

    before, state = random.getstate(), torch.get_rng_state()
    with pytest.raises(OSError, match="no image"):
        next(iter(ChunkLoader(Fails(), ClassBalancedBatchSampler(LABELS, 16, 2), 5)))
    assert random.getstate() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_position_in_another_epoch_skips_nothing():
    loader = ChunkLoader(images_in_memory(), ClassBalancedBatchSampler(LABELS, 16, 2), 16)
    loader.load_state_dict({"epoch": 1, "batches": 2})
    assert len(list(loader)) == len(loader) - 2
    loader.load_state_dict({"epoch": 1, "batches": 2})
    loader.sampler.set_epoch(0)
    assert len(list(loader)) == len(loader)


def chunk_loader(batch_size=16, samples_per_class=2, seed=0, num_images=60, **kwargs):
    labels = np.stack([LABELS, LABELS % 5], 1)[:num_images]
    sampler = ClassBalancedBatchSampler(labels, batch_size, samples_per_class, np.int64(seed), **kwargs)
    return ChunkLoader(images_in_memory(), sampler, 4)


def state_after(batches, loader):
    epoch = iter(loader)
    for _ in range(batches):
        next(epoch)
    return copy.deepcopy(loader.state_dict())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batch_size": 8}, "epoch 1 with batch_size=8: the epoch was started with batch_size=16"),
        ({"samples_per_class": 4, "few_classes": "repeat"}, "with samples_per_class=4: .* with samples_per_class=2"),
        (
            {"seed": 3},
            "with seed=3: the epoch was started with seed=0. Keep seed=0, or resume from the end",
        ),
        ({"num_images": 54}, "with num_images=54: .* with num_images=60"),
        ({"tail": "fill"}, "with tail=fill: .* with tail=drop"),
        ({"super_classes": np.int64(4)}, "with super_classes=4: .* with super_classes=None"),
        ({"epoch_order": "published"}, "with epoch_order=published: .* with epoch_order=longest"),
    ],
)
def test_an_epoch_resumes_only_with_its_own_settings(changed, words):
    first = chunk_loader()
    first.sampler.set_epoch(1)
    middle = state_after(2, first)
    assert (middle["epoch"], middle["batches"]) == (1, 2)
    resumed = chunk_loader(**changed)
    resumed.load_state_dict(middle)
    assert resumed.state_dict() == middle  # saved before an epoch starts, the position is unchanged
    with pytest.raises(ValueError, match=words):
        next(iter(resumed))
    resumed.load_state_dict(middle)
    resumed.sampler.set_epoch(2)  # as Lightning does if its epoch has ended, for example with limit_train_batches
    assert len(list(resumed)) == resumed.state_dict()["num_batches"] > 0
    resumed.load_state_dict({**middle, "batches": 0})
    assert len(list(resumed)) == resumed.state_dict()["num_batches"]  # no batch of this epoch was yielded


@pytest.mark.parametrize("batch_size", [8, 16, 20])
def test_a_complete_epoch_stays_complete_with_other_settings(batch_size):
    first = chunk_loader()
    complete = state_after(len(first), first)
    resumed = chunk_loader(batch_size)
    resumed.load_state_dict(complete)
    assert list(resumed) == []
    assert len(list(resumed)) > 0


def test_states_load_with_weights_only_and_from_earlier_versions(tmp_path):
    state = state_after(1, chunk_loader(batch_size=np.int64(16), samples_per_class=np.int64(2)))
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state
    loader = chunk_loader()
    loader.load_state_dict({"epoch": 0, "batches": 1})
    assert len(list(loader)) == len(loader) - 1


def test_invalid_sizes_are_rejected():
    sampler = ClassBalancedBatchSampler(LABELS, 16, 2)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        ChunkLoader(images_in_memory(), sampler, 0)
    sampler.shard = 0, 17
    with pytest.raises(ValueError, match="batch_size=16 must be at least the world size 17"):
        list(ChunkLoader(images_in_memory(), sampler, 4))


class Pairs:
    """Items (image (2, 3), label), some of another kind."""

    def __init__(self, change=None):
        self.change = change

    def __getitem__(self, index):
        image = torch.full((3, 2), index).T.to(torch.uint8)  # not contiguous
        if self.change is not None and index == 4:
            image = self.change(image)
        return image, torch.tensor(index // 2)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_chunks_equal_those_of_the_default_collate(num_workers):
    sampler = ClassBalancedBatchSampler(np.arange(12) // 2, 6, 2)
    for data in (Pairs(), [{"a": torch.tensor([float(i)]), "b": str(i)} for i in range(12)], Noise()):
        ours = ChunkLoader(data, copy.copy(sampler), 4, num_workers=num_workers)
        torchs = ChunkLoader(data, copy.copy(sampler), 4, num_workers=num_workers, collate_fn=default_collate)
        for chunks, expected in zip(ours, torchs, strict=True):
            assert repr(chunks) == repr(expected)
            if data is not torchs and isinstance(data, Pairs):
                assert chunks[0][0].is_contiguous()
                assert chunks[0][0].is_shared() == (num_workers > 0)


@pytest.mark.parametrize("change", [lambda image: image[:1], lambda image: image.float()])
def test_items_of_different_shapes_are_rejected(change):
    sampler = ClassBalancedBatchSampler(np.arange(12) // 2, 12, 2)
    with pytest.raises(ValueError, match="Items of different shapes or dtypes cannot form a batch, such as"):
        list(ChunkLoader(Pairs(change), sampler, 12))


class Recorded(Pairs):
    """Counts the items that workers have loaded."""

    def __init__(self):
        super().__init__()
        self.loaded = torch.zeros(48, dtype=torch.int64).share_memory_()

    def __getitem__(self, index):
        self.loaded[index] += 1
        return super().__getitem__(index)


@pytest.mark.parametrize(("settings", "expected"), [({}, 6), ({"prefetch_factor": 1}, 2)])
def test_the_next_batch_is_loaded_during_a_step(settings, expected):
    """Batches of 12 images in 6 chunks, two workers."""
    data = Recorded()
    loader = ChunkLoader(data, ClassBalancedBatchSampler(np.arange(48) // 2, 12, 2), 2, num_workers=2, **settings)
    batches = iter(loader)
    assert len(next(batches)) == 6
    deadline = time.monotonic() + 5
    while data.loaded.sum() < 12 + 2 * expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert data.loaded.sum() == 12 + 2 * expected


def test_few_chunks_per_batch_keep_the_default_of_torch_and_many_are_limited():
    for chunk_size, expected in ((2, 3), (6, 2), (12, 2)):
        loader = ChunkLoader(Pairs(), ClassBalancedBatchSampler(np.arange(24) // 2, 12, 2), chunk_size, num_workers=2)
        next(iter(loader))
        assert loader.loader.prefetch_factor == expected
    loader = ChunkLoader(Pairs(), ClassBalancedBatchSampler(np.arange(400) // 2, 400, 2), 1, num_workers=1)
    next(iter(loader))
    assert loader.loader.prefetch_factor == 64


def test_persistent_workers_draw_the_same_epochs():
    def epochs(**settings):
        loader = ChunkLoader(Noise(), ClassBalancedBatchSampler(LABELS, 16, 2), 5, **settings)
        next(iter(loader))  # an epoch that is left early
        return torch.cat([noise for _ in range(2) for chunks in loader for noise, _ in chunks])

    assert torch.equal(epochs(), epochs(num_workers=2, persistent_workers=True))
