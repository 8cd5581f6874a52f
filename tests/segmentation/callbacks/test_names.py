from types import SimpleNamespace

import pytest
import torch

from lightning_recall.segmentation.callbacks.names import class_names_of, image_names, mask_names

HOLDER = SimpleNamespace(class_names=("sky", "road"))


@pytest.mark.parametrize("place", ["data module", "data set", "module"])
def test_names_come_from_what_has_them(place):
    names = dict.fromkeys(("data module", "data set", "module"), SimpleNamespace()) | {place: HOLDER}
    trainer, loader = SimpleNamespace(datamodule=names["data module"]), SimpleNamespace(dataset=names["data set"])
    assert class_names_of(trainer, names["module"], loader, 1) == ("sky", "road")
    assert class_names_of(trainer, names["module"], loader, 3) == ("sky", "road", "2", "3")


def test_names_of_the_module_come_first():
    trainer = SimpleNamespace(datamodule=SimpleNamespace(class_names=("a", "b")))
    assert class_names_of(trainer, SimpleNamespace(class_names=("sky", "road")), None, 1) == ("sky", "road")


def test_classes_without_names_are_numbered():
    assert class_names_of(SimpleNamespace(datamodule=None), SimpleNamespace(), None, 2) == ("0", "1", "2")


def test_captions_are_file_names():
    files = SimpleNamespace(image_path=lambda index: f"/data/{index}.jpg")
    assert image_names(files, torch.tensor([3, 1])) == ["3.jpg", "1.jpg"]
    assert image_names([], torch.tensor([3])) == ["image 3"]
    assert image_names(files, None) is None


def test_masks_are_named_after_images():
    assert mask_names([]) == []
    assert mask_names(["x/1.jpg"]) == ["1.png"]
    assert mask_names(["x/a/1.v2.jpg", "x/b/1.v2.jpg"]) == ["a/1.v2.png", "b/1.v2.png"]
    assert mask_names(["x/1.jpg", "x/1.png", "x/2.png"]) == ["1.jpg.png", "1.png.png", "2.png"]
