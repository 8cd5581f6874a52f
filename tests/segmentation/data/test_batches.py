import numpy as np
import pytest
import torch

from lightning_recall.segmentation.data import SegmentationLoader, SegmentationTransforms, ShuffledBatchSampler, batches
from lightning_recall.segmentation.data.batches import (
    EvaluationItems,
    EvaluationSampler,
    RepeatedIndex,
    collate,
)
from lightning_recall.segmentation.data.in_memory import SegmentationArrays


def arrays(count=10, **settings):
    """Image i is of colour i, and its mask of class i."""
    images = np.repeat(np.arange(count, dtype=np.uint8), 3 * 8 * 8).reshape(count, 3, 8, 8)
    return SegmentationArrays(images, images[:, 0].copy(), [str(i) for i in range(count)], **settings)


def training_arrays():
    return arrays(transforms=SegmentationTransforms(crop_size=4, color_jitter=0.5)).for_training()


def contents(loader):
    return [(images.tolist(), masks.tolist()) for images, masks in loader]


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


def test_batches_do_not_depend_on_workers():
    loaders = [SegmentationLoader(training_arrays(), ShuffledBatchSampler(10, 4), num_workers=n) for n in (0, 2)]
    torch.manual_seed(5)
    first = contents(loaders[0])
    assert first == contents(loaders[1])
    assert first != contents(loaders[0])
    images, masks = next(iter(loaders[0]))
    assert type(images) is type(masks) is torch.Tensor
    assert images.dtype == torch.uint8
    assert masks.dtype == torch.int64


def test_resuming_in_the_middle_of_an_epoch():
    loader = SegmentationLoader(training_arrays(), ShuffledBatchSampler(10, 2))
    list(loader)
    iterator = iter(loader)
    seen = [next(iterator) for _ in range(2)]
    state = loader.state_dict()
    rest = contents(iterator)
    resumed = SegmentationLoader(training_arrays(), ShuffledBatchSampler(10, 2))
    resumed.load_state_dict(state)
    assert len(seen) == 2
    assert contents(resumed) == rest
    assert len(rest) == 3
    other = SegmentationLoader(training_arrays(), ShuffledBatchSampler(10, 5))
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="batch_size=5: the epoch was started with batch_size=2"):
        list(other)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_scores_each_image_once(world_size):
    data = EvaluationItems(arrays())
    seen, lengths = [], set()
    for rank in range(world_size):
        sampler = EvaluationSampler(data, rank, world_size)
        indices = list(sampler)
        lengths.add(len(indices))
        assert len(sampler) == len(indices)
        for index in indices:
            image, mask = data[index]
            assert image[0, 0, 0] == index
            if (mask != 255).all():
                seen.append(int(mask[0, 0]))
            else:
                assert isinstance(index, RepeatedIndex)
                assert (mask == 255).all()
    assert sorted(seen) == list(range(10))
    assert len(lengths) == 1
    assert data.class_names == tuple(map(str, range(10)))


def test_images_of_different_sizes():
    items = [(torch.zeros(3, *size), torch.zeros(size)) for size in ((4, 6), (5, 6))]
    with pytest.raises(ValueError, match=r"such as 6 x 4 and 6 x 5 pixels, cannot form a batch: .*eval_batch_size=1"):
        collate(items)
    assert collate(items[:1])[0].shape == (1, 3, 4, 6)
