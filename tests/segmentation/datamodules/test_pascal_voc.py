import builtins

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat
from segmentation_data import draw_sbd, draw_voc, save_palette
from torchvision.datasets import VOCSegmentation

from lightning_recall.segmentation.datamodules import PascalVOCDataModule
from lightning_recall.segmentation.datamodules.pascal_voc import voc_colors


def names(data):
    return [data.image_path(index).rsplit("/", 1)[1] for index in range(len(data))]


def test_masks_are_palette_indices(tmp_path):
    data = PascalVOCDataModule(str(draw_voc(tmp_path)))
    data.setup()
    assert names(data.train_data) == [f"2007_{index:06d}.jpg" for index in range(6)]
    assert names(data.val_data) == names(data.test_data) == [f"2007_{index:06d}.jpg" for index in range(6, 9)]
    for index, (_, target) in enumerate(VOCSegmentation(str(tmp_path), image_set="val")):
        assert np.array_equal(data.val_data[index][1], np.asarray(target))
    assert data.num_classes == 21
    assert data.class_names[15] == "person"


def test_evaluation_is_image_by_image(tmp_path):
    data = PascalVOCDataModule(str(draw_voc(tmp_path)))
    data.setup()
    assert [images.shape for images, _ in data.val_dataloader()] == [(1, 3, 48, 36), (1, 3, 36, 48), (1, 3, 48, 36)]
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (6, 3, 512, 512)
    with pytest.raises(ValueError, match="validation: Images of different sizes"):
        PascalVOCDataModule(str(tmp_path), eval_batch_size=2).setup()


def test_sbd_adds_images_that_are_in_neither_split(tmp_path):
    data = PascalVOCDataModule(str(draw_voc(tmp_path / "voc")), str(draw_sbd(tmp_path / "sbd")))
    data.setup()
    added = names(data.train_data)[6:]
    assert added == ["2008_000001.jpg", "2008_000002.jpg"]
    assert not set(names(data.train_data)) & set(names(data.val_data))
    assert len(data.val_data) == 3
    ids = loadmat(tmp_path / "sbd" / "cls" / "2008_000002.mat")["GTcls"][0]["Segmentation"][0]
    assert np.array_equal(data.train_data.read_mask(7), ids)
    assert ".png" in data.train_data.mask_path(2)  # 2007_000002 is in both: VOC's mask


def test_missing_files(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"Segmentation/train.txt does not exist.*VOCtrainval"):
        PascalVOCDataModule(str(tmp_path)).setup()
    draw_voc(tmp_path)
    data = PascalVOCDataModule(str(tmp_path), str(tmp_path / "sbd"))
    with pytest.raises(ValueError, match=r"sbd/train.txt does not exist.*benchmark.tgz"):
        data.setup()
    original = builtins.__import__

    def without_scipy(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with pytest.raises(ImportError, match="pip install scipy"):
        data.setup()


def test_the_palette_is_that_of_the_files(tmp_path):
    """Colours of classes 1, 15, 20 and 255 as VOC's development kit documents them."""
    colors = voc_colors(256)
    expected = [[128, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]]
    assert [colors[index].tolist() for index in (1, 15, 20, 255)] == expected
    save_palette(np.arange(4).reshape(2, 2), tmp_path / "a.png", colors)
    assert np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))[1, 0].tolist() == [0, 128, 0]
