import numpy as np
import pytest
from PIL import Image
from segmentation_data import draw_cityscapes

from lightning_recall.segmentation.datamodules import CityscapesDataModule

IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""the id of each class, written down from the cityscapesScripts (labels.py)"""
TRAIN_IDS = {number: index for index, number in enumerate(IDS)}


def test_ids_become_the_19_classes(tmp_path):
    data = CityscapesDataModule(str(draw_cityscapes(tmp_path)))
    data.setup()
    assert [len(part) for part in (data.train_data, data.val_data, data.test_data)] == [6, 3, 3]
    assert data.val_data.image_path(1).endswith("vala/vala_000002_000019_leftImg8bit.png")
    for index in range(3):
        ids = np.asarray(Image.open(data.val_data.mask_path(index)))
        expected = [[TRAIN_IDS.get(int(value), 255) for value in row] for row in ids]
        assert data.val_data[index][1].tolist() == expected
    assert data.num_classes == 19
    assert [data.class_names[index] for index in (0, 5, 11, 18)] == ["road", "pole", "person", "bicycle"]
    assert data.colors[0].tolist() == [128, 64, 128]


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"leftImg8bit/train does not exist.*gtFine_trainvaltest.zip"):
        CityscapesDataModule(str(tmp_path)).setup()
    draw_cityscapes(tmp_path)
    data = CityscapesDataModule(str(tmp_path))
    next((tmp_path / "gtFine" / "train" / "traina").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"training: cannot read the mask .*traina.*labelIds.png"):
        data.setup()
    for file in (tmp_path / "leftImg8bit" / "val").rglob("*.png"):
        file.unlink()
    with pytest.raises(ValueError, match=r"leftImg8bit/val holds no CITY/NAME_leftImg8bit.png"):
        data.check_data()
