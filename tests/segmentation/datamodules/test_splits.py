import numpy as np
import pytest

from lightning_recall.segmentation.data import MaskFormat, SegmentationFiles
from lightning_recall.segmentation.datamodules.splits import hold_out


def data(count):
    names = [f"{index}.png" for index in range(count)]
    return SegmentationFiles(names, names, MaskFormat({0: 0}), ("a",))


def test_parts_are_disjoint_and_complete(tmp_path):
    parts = hold_out(data(20), {"val": 0.1, "test": 0.3}, 0, tmp_path)
    names = {split: set(part.images.tolist()) for split, part in parts.items()}
    assert [len(names[split]) for split in ("train", "val", "test")] == [12, 2, 6]
    assert len(set.union(*names.values())) == 20
    assert all(np.array_equal(part.images, part.masks) for part in parts.values())
    again, other = (hold_out(data(20), {"val": 0.1}, seed, tmp_path) for seed in (0, 1))
    assert set(again["val"].images.tolist()) == names["val"]
    assert set(other["val"].images.tolist()) != names["val"]
    assert list(hold_out(data(3), {"val": 0.0}, 0, tmp_path)) == ["train"]


def test_too_few_images(tmp_path):
    with pytest.raises(ValueError, match="holds 2 training images: too few to hold out 1 for val and 1 for test"):
        hold_out(data(2), {"val": 0.1, "test": 0.1}, 0, tmp_path)
