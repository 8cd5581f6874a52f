import numpy as np
import pytest
import torch

from lightning_recall.segmentation.data import SegmentationArrays, SegmentationTransforms


def test_items_and_training():
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 256, (3, 3, 8, 10), np.uint8), rng.integers(0, 4, (3, 8, 10), np.uint8)
    data = SegmentationArrays(images, masks, "abcd", SegmentationTransforms(crop_size=4))
    image, mask = data[1]
    assert np.array_equal(image, images[1])
    assert np.array_equal(mask, masks[1])
    assert mask.dtype == torch.int64
    assert np.array_equal(data.read_mask(2), masks[2])
    assert data.for_training()[0][0].shape == (3, 4, 4)
    assert not data.training


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"got \(2, 3, 8, 8\) and \(2, 8, 9\)"):
        SegmentationArrays(np.zeros((2, 3, 8, 8), np.uint8), np.zeros((2, 8, 9), np.uint8), "a")
