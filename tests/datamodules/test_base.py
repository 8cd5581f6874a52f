import copy
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_recall import ClassBalancedBatchSampler, RetrievalDataModule
from lightning_recall.datamodules import ChunkLoader
from lightning_recall.datamodules.base import ImagesInMemory

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
    for chunks, rows in zip(batches, sampler, strict=True):
        assert all(len(images) == len(labels) <= chunk_size for images, labels in chunks)
        assert torch.cat([images for images, _ in chunks])[:, 0, 0, 0].tolist() == rows
        assert torch.cat([labels for _, labels in chunks]).tolist() == LABELS[rows].tolist()
        assert chunks[0][0].dtype == torch.uint8


def test_processes_share_each_batch():
    whole, shares = ClassBalancedBatchSampler(LABELS, 16, 2), []
    for rank in range(2):
        sampler = ClassBalancedBatchSampler(LABELS, 16, 2)
        sampler.shard = rank, 2
        loader = ChunkLoader(images_in_memory(), sampler, 4)
        shares.append([torch.cat([i for i, _ in chunks])[:, 0, 0, 0].tolist() for chunks in loader])
    assert [a + b for a, b in zip(*shares, strict=True)] == list(whole)


class Noise(torch.utils.data.Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, row):
        return torch.rand(2) + np.random.rand() + random.random(), row  # noqa: NPY002  # what augmentations draw from


def test_augmentation_follows_the_place_in_the_whole_batch():
    def drawn(shard, chunk_size):
        sampler = ClassBalancedBatchSampler(LABELS, 16, 2)
        sampler.shard = shard
        return [torch.cat([noise for noise, _ in chunks]) for chunks in ChunkLoader(Noise(), sampler, chunk_size)]

    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002  # likewise
    whole, first, second = drawn((0, 1), 16), drawn((0, 2), 3), drawn((1, 2), 5)
    for batch, *shares in zip(whole, first, second, strict=True):
        assert torch.equal(torch.cat(shares), batch)
        assert len(batch.unique()) == batch.numel()
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002  # likewise
    assert torch.equal(torch.get_rng_state(), state[2])


def test_no_two_places_draw_the_same_random_numbers():
    class InChunks(Noise):
        def __getitems__(self, rows):
            return [self[row] for row in rows]

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


def test_a_resumed_epoch_gives_the_batches_that_are_left():
    def drawn(loader):
        return [torch.cat([noise for noise, _ in chunks]) for chunks in loader]

    loader, resumed = (ChunkLoader(Noise(), ClassBalancedBatchSampler(LABELS, 16, 2), 5) for _ in range(2))
    whole = drawn(loader)
    resumed.load_state_dict({"epoch": 0, "batches": 1})
    for expected, found in zip(whole[1:], drawn(resumed), strict=True):
        assert torch.equal(found, expected)
    for expected, found in zip(drawn(loader), drawn(resumed), strict=True):  # the next epoch is whole
        assert torch.equal(found, expected)


def test_each_pass_is_another_epoch_that_lightning_can_set():
    loader = ChunkLoader(images_in_memory(), ClassBalancedBatchSampler(LABELS, 16, 2), 16)

    def rows():
        return [chunks[0][0][:, 0, 0, 0].tolist() for chunks in loader]

    first, second = rows(), rows()
    assert first != second
    loader.sampler.set_epoch(0)
    assert rows() == first


def test_epochs_may_differ_in_length():
    labels = np.repeat(np.arange(7), [8, 8, 8, 12, 12, 8, 4])
    sampler = ClassBalancedBatchSampler(np.stack([labels, labels % 3], 1), 12, 4, super_classes=1)
    loader = ChunkLoader(images_in_memory(), sampler, 5)
    lengths = [(len(loader), len(list(loader))) for _ in range(8)]
    assert all(told == found for told, found in lengths)
    assert len(set(lengths)) > 1
    for _ in range(8):
        assert len(list(loader)) == loader.state_dict()["num_batches"]  # of the epoch that is over, not of the next


def test_an_item_that_fails_leaves_the_random_numbers_as_they_were():
    class Fails(Noise):
        def __getitem__(self, row):
            raise OSError(f"no image {row}")

    before, state = random.getstate(), torch.get_rng_state()
    with pytest.raises(OSError, match="no image"):
        next(iter(ChunkLoader(Fails(), ClassBalancedBatchSampler(LABELS, 16, 2), 5)))
    assert random.getstate() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_sizes_are_refused():
    sampler = ClassBalancedBatchSampler(LABELS, 16, 2)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        ChunkLoader(images_in_memory(), sampler, 0)
    sampler.shard = 0, 17
    with pytest.raises(ValueError, match="batch_size=16 leaves none for some of the 17 processes"):
        list(ChunkLoader(images_in_memory(), sampler, 4))
    with pytest.raises(ValueError, match="eval_batch_size must be at least 1, got 0"):
        RetrievalDataModule(eval_batch_size=0)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"train": 0, "test": 60}, "training"),
        ({"train": 60, "val": 0, "test": 60}, "validation"),
        ({"train": 60, "test": {"small": 60, "large": 0}}, "test large"),
    ],
)
def test_a_part_without_an_image_is_refused(parts, name):
    of = {count: images_in_memory().select(slice(count)) for count in (0, 60)}
    data = RetrievalDataModule()
    data.read = lambda: {
        part: {name: of[n] for name, n in count.items()} if isinstance(count, dict) else of[count]
        for part, count in parts.items()
    }
    with pytest.raises(ValueError, match=f"RetrievalDataModule has no image for {name}: look into"):
        data.setup("fit")


class Memory(RetrievalDataModule):
    def read(self):
        return {"train": images_in_memory()}


@pytest.mark.parametrize("settings", [{}, {"seed": 7}, {"reshuffle": False}, {"seed": 7, "reshuffle": False}])
@pytest.mark.parametrize("overfit_batches", [0, 1])
def test_the_sampler_keeps_what_its_config_says(settings, overfit_batches):
    data = Memory(batch_size=16, samples_per_class=2, val_classes=0, seed=3)
    data.sampler = partial(ClassBalancedBatchSampler, **settings)
    data.trainer = SimpleNamespace(overfit_batches=overfit_batches)
    data.setup("fit")
    sampler = data.train_dataloader().sampler
    expected = ClassBalancedBatchSampler(LABELS, 16, 2, **{"seed": 3, **settings})
    expected.reshuffle = settings.get("reshuffle", True) and not overfit_batches
    for _ in range(2):
        assert list(sampler) == list(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", "256", "must be an integer, at least 1, got '256'"),
        ("batch_size", 256.0, "must be an integer, at least 1, got 256.0"),
        ("samples_per_class", "all", "must be an integer, at least 1, got 'all'"),
        ("chunk_size", None, "must be an integer, at least 1, got None"),
        ("chunk_size", 0, "must be at least 1, got 0"),
        ("eval_batch_size", True, "must be an integer, at least 1, got True"),
        ("num_workers", -1, "must be at least 0, got -1"),
        ("seed", -1, "must be at least 0, got -1"),
        ("seed", None, "must be an integer, at least 0, got None"),
    ],
)
def test_numbers_of_a_wrong_kind_are_refused_at_once(name, value, message):
    with pytest.raises(ValueError, match=f"{name} {message}"):
        RetrievalDataModule(**{name: value})


@pytest.mark.parametrize("kind", ["int64", "int32", "uint16", "int8", "float32", "float64", "bool"])
def test_images_that_are_not_uint8_are_refused(kind):
    images = np.arange(60 * 64).reshape(60, 1, 8, 8).astype(kind)
    with pytest.raises(ValueError, match=rf"images must be uint8 of shape \(N, C, H, W\), got {kind} \(60, 1, 8, 8\)"):
        ImagesInMemory(images, LABELS)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"got uint8 \(60, 8, 8\)"):
        ImagesInMemory(np.zeros((60, 8, 8), np.uint8), LABELS)
    with pytest.raises(ValueError, match=r"labels must be of shape \(60,\), one for each image, got \(59,\)"):
        ImagesInMemory(np.zeros((60, 1, 8, 8), np.uint8), LABELS[:59])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_labels_of_16_digits_stay_what_they_are(num_workers):
    labels = LABELS + 9_007_199_254_740_993  # 2 ** 53 + 1, the first integer that float64 has not
    data = Memory(batch_size=16, samples_per_class=2, val_classes=2, num_workers=num_workers)
    data.read = lambda: {"train": ImagesInMemory(images_in_memory().images.numpy(), labels.tolist())}
    data.setup("fit")
    loaders = data.train_dataloader(), data.val_dataloader()
    chunks = [chunk for batch in loaders[0] for chunk in batch] + list(loaders[1])
    found = torch.cat([labels for _, labels in chunks])
    assert set(found.tolist()) == set(labels.tolist())
    for images, part in chunks:
        assert part.tolist() == labels[images[:, 0, 0, 0].numpy()].tolist()


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
    passed = iter(loader)
    for _ in range(batches):
        next(passed)
    return copy.deepcopy(loader.state_dict())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batch_size": 8}, "epoch 1 with batch_size=8: the epoch was begun with batch_size=16"),
        ({"samples_per_class": 4, "few_classes": "repeat"}, "with samples_per_class=4: .* with samples_per_class=2"),
        ({"seed": 3}, "with seed=3: the epoch was begun with seed=0. Keep seed=0, or resume from the end of an epoch"),
        ({"num_images": 54}, "with num_images=54: .* with num_images=60"),
        ({"tail": "fill"}, "with tail=fill: .* with tail=drop"),
        ({"super_classes": np.int64(4)}, "with super_classes=4: .* with super_classes=None"),
        ({"epoch_order": "published"}, "with epoch_order=published: .* with epoch_order=longest"),
    ],
)
def test_an_epoch_continues_only_with_its_own_settings(changed, words):
    first = chunk_loader()
    first.sampler.set_epoch(1)
    middle = state_after(2, first)
    assert (middle["epoch"], middle["batches"]) == (1, 2)
    resumed = chunk_loader(**changed)
    resumed.load_state_dict(middle)
    assert resumed.state_dict() == middle  # saved before a pass begins, the position stays what it was
    with pytest.raises(ValueError, match=words):
        next(iter(resumed))
    resumed.load_state_dict(middle)
    resumed.sampler.set_epoch(2)  # as Lightning does where its epoch is over, such as with limit_train_batches
    assert len(list(resumed)) == resumed.state_dict()["num_batches"] > 0
    resumed.load_state_dict({**middle, "batches": 0})
    assert len(list(resumed)) == resumed.state_dict()["num_batches"]  # nothing of this epoch was taken


@pytest.mark.parametrize("batch_size", [8, 16, 20])
def test_an_epoch_that_is_over_stays_so_with_other_settings(batch_size):
    first = chunk_loader()
    over = state_after(len(first), first)
    resumed = chunk_loader(batch_size)
    resumed.load_state_dict(over)
    assert list(resumed) == []
    assert len(list(resumed)) > 0


def test_states_are_plain_and_those_of_earlier_versions_load(tmp_path):
    state = state_after(1, chunk_loader(batch_size=np.int64(16), samples_per_class=np.int64(2)))
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state
    loader = chunk_loader()
    loader.load_state_dict({"epoch": 0, "batches": 1})
    assert len(list(loader)) == len(loader) - 1


def test_an_evaluation_draws_nothing_from_the_random_numbers_of_the_training():
    data = Memory(val_classes=2)
    data.setup("fit")
    state = torch.get_rng_state()
    assert len(list(data.val_dataloader())) == 1
    assert torch.equal(torch.get_rng_state(), state)
