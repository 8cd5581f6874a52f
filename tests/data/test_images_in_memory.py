import numpy as np
import pytest

from lightning_recall.data import ImagesInMemory

LABELS = np.repeat(np.arange(10), 6)


@pytest.mark.parametrize("kind", ["int64", "int32", "uint16", "int8", "float32", "float64", "bool"])
def test_images_that_are_not_uint8_are_rejected(kind):
    images = np.arange(60 * 64).reshape(60, 1, 8, 8).astype(kind)
    with pytest.raises(ValueError, match=rf"images must be uint8 of shape \(N, C, H, W\), got {kind} \(60, 1, 8, 8\)"):
        ImagesInMemory(images, LABELS)


def test_images_of_another_shape_are_rejected():
    with pytest.raises(ValueError, match=r"got uint8 \(60, 8, 8\)"):
        ImagesInMemory(np.zeros((60, 8, 8), np.uint8), LABELS)
    with pytest.raises(ValueError, match=r"labels must be of shape \(60,\), one for each image, got \(59,\)"):
        ImagesInMemory(np.zeros((60, 1, 8, 8), np.uint8), LABELS[:59])
