import numpy as np
import pytest

from lightning_recall.segmentation.datamodules import ScenesDataModule


@pytest.fixture(scope="module")
def data():
    data = ScenesDataModule(num_images=60)
    data.setup()
    return data


def test_splits_differ(data):
    sizes = [len(part) for part in (data.train_data, data.val_data, data.test_data)]
    assert sizes == [60, 12, 20]
    images = np.concatenate([part.images for part in (data.train_data, data.val_data, data.test_data)])
    assert len({image.tobytes() for image in images}) == 92


def test_classes_are_long_tailed(data):
    frequencies = dict(zip(data.class_names, data.class_frequencies, strict=True))
    assert frequencies["road"] > 0.15
    assert 0.002 < frequencies["sign"] < 0.006
    assert min(frequencies.values()) > 0.002
    assert len(data.colors) == data.num_classes == 9


def test_batches(data):
    images, masks = next(iter(data.train_dataloader()))
    assert images.shape == (8, 3, 64, 96)
    assert masks.shape == (8, 64, 96)
    assert len(list(data.test_dataloader())) == 3
