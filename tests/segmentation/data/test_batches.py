import numpy as np
import pytest
import torch

from lightning_recall.data.batches import EvaluationItems, RepeatedIndex
from lightning_recall.segmentation.data import SegmentationLoader, SegmentationTransforms, ShuffledBatchSampler
from lightning_recall.segmentation.data.batches import collate
from lightning_recall.segmentation.data.in_memory import SegmentationArrays


def arrays(count=10, **settings):
    """Image i is of colour i, and its mask of class i."""
    images = np.repeat(np.arange(count, dtype=np.uint8), 3 * 8 * 8).reshape(count, 3, 8, 8)
    return SegmentationArrays(images, images[:, 0].copy(), [str(i) for i in range(count)], **settings)


def training_arrays():
    return arrays(transforms=SegmentationTransforms(crop_size=4, color_jitter=0.5)).for_training()


def contents(loader):
    return [(images.tolist(), masks.tolist()) for images, masks in loader]


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


def test_the_mask_of_a_repeated_image_is_ignored():
    data = EvaluationItems(arrays(3), 255)
    assert (data[1][1] == 1).all()
    image, mask = data[RepeatedIndex(1)]
    assert (image == 1).all()
    assert (mask == 255).all()
    assert mask.shape == (8, 8)


def test_images_of_different_sizes():
    items = [(torch.zeros(3, *size), torch.zeros(size)) for size in ((4, 6), (5, 6))]
    with pytest.raises(ValueError, match=r"such as 6 x 4 and 6 x 5 pixels, cannot form a batch: .*eval_batch_size=1"):
        collate(items)
    assert collate(items[:1])[0].shape == (1, 3, 4, 6)
