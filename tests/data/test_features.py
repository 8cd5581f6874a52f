import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import draw
from torch import nn
from torchvision.transforms import v2

from lightning_recall.batch import IGNORED_LABEL
from lightning_recall.data import ImageFiles, ImagesInMemory
from lightning_recall.data.features import (
    FeatureDataset,
    contents_key,
    load_features,
    replace_unreadable,
    save_features,
    transform_key,
    weights_key,
)

IMAGES = ImagesInMemory(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), np.array([4, 4, 5, 5, 6, 6]))
FEATURES = torch.arange(6.0)[:, None, None].expand(6, 2, 3) + torch.tensor([0, 100])[:, None]


def test_a_subset_keeps_features_and_attributes():
    data = ImagesInMemory(IMAGES.images.numpy(), IMAGES.labels)
    data.groups = np.arange(6)
    readable = torch.tensor([True, False, True, True, True, True])
    chosen = copy.copy(FeatureDataset(data, FEATURES, readable)).select([1, 4])
    assert len(chosen) == 2
    assert chosen.groups.tolist() == [1, 4]
    assert [int(chosen[index][1]) for index in range(2)] == [IGNORED_LABEL, 6]  # unreadable images have no label
    assert {float(chosen[1][0][0]) for _ in range(40)} == {4.0, 104.0}
    with pytest.raises(AttributeError, match="nothing"):
        _ = chosen.nothing


def test_features_of_unreadable_images_are_those_of_another_image_of_the_class():
    features, readable = FEATURES.clone(), torch.tensor([True, False, False, True, True, True])
    replace_unreadable(features, readable, IMAGES.labels)
    assert features[:, 0, 0].tolist() == [0, 0, 3, 3, 4, 5]
    with pytest.raises(ValueError, match="Cannot read any image of class 5"):
        replace_unreadable(features, torch.tensor([True, True, False, False, True, True]), IMAGES.labels)


class Embedder(nn.Module):
    def __init__(self, epsilon=1e-5):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, epsilon))
        self.head = nn.Sequential(nn.Linear(3, 4))


def test_the_key_of_the_weights_depends_on_all_but_the_head():
    key = weights_key(Embedder())
    assert weights_key(Embedder()) == key
    changed = Embedder()
    changed.head = nn.Linear(3, 5)
    assert weights_key(changed) == key
    keys = {key, weights_key(Embedder(epsilon=1e-3)), weights_key(Embedder().to(torch.bfloat16))}
    for change in ("weight", "running_mean"):
        changed = Embedder()
        layer = changed.backbone[0 if change == "weight" else 1]
        getattr(layer, change).data.view(-1)[0] += 1
        keys.add(weights_key(changed))
    changed = Embedder()
    changed.backbone[0].scaling = {"default": 2.0}  # of LoRA matrices
    keys.add(weights_key(changed))
    assert len(keys) == 6


def test_the_key_of_the_contents_depends_on_files_boxes_and_pixels(tmp_path):
    paths = ["0.png", "1.png"]
    for path in paths:
        draw(tmp_path / path)
    files = ImageFiles(tmp_path, paths, [0, 1])
    keys = [contents_key(files), contents_key(ImageFiles(tmp_path, paths[::-1], [0, 1]))]
    keys.append(contents_key(ImageFiles(tmp_path, paths, [0, 1], boxes=[[0, 0, 5, 5]] * 2)))
    draw(tmp_path / "1.png", size=(50, 50))
    keys += [contents_key(files), contents_key(IMAGES), contents_key(IMAGES.select([0, 1]))]
    assert len(set(keys)) == 6
    assert contents_key(ImageFiles(tmp_path, paths, [7, 8])) == contents_key(files)  # whatever the labels
    with pytest.raises(ValueError, match="TensorDataset is neither, so omit folder"):
        contents_key(torch.utils.data.TensorDataset(torch.zeros(2)))


def test_files_are_read_only_with_the_same_keys(tmp_path):
    file, readable = tmp_path / "new" / "train.safetensors", torch.ones(6, dtype=torch.bool)
    assert load_features(file, {"weights": "a"}) == (None, "")
    save_features(file, FEATURES, readable, {"weights": "a", "images": "b"})
    assert [path.name for path in file.parent.iterdir()] == ["train.safetensors"]
    loaded, reason = load_features(file, {"weights": "a", "images": "b"})
    assert torch.equal(loaded["features"], FEATURES)
    assert torch.equal(loaded["readable"], readable)
    assert reason == ""
    loaded, reason = load_features(file, {"weights": "a", "images": "c"})
    assert loaded is None
    assert reason.endswith("train.safetensors was made with other images: embedding the images again.")


class Blur(nn.Module):
    """A transform whose repr does not show its setting."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, image):
        return image


def test_the_key_of_a_transform_changes_with_each_setting():
    def key(*transforms, mode="RGB"):
        return transform_key(SimpleNamespace(transform=v2.Compose(transforms), transforms=SimpleNamespace(mode=mode)))

    assert repr(Blur(3)) == repr(Blur(5))
    assert key(Blur(3), v2.Resize(8)) == key(Blur(3), v2.Resize(8))
    others = [
        key(Blur(5), v2.Resize(8)),
        key(Blur(3), v2.Resize(9)),
        key(Blur(3)),
        key(Blur(3), v2.Resize(8), mode="L"),
    ]
    assert key(Blur(3), v2.Resize(8)) not in others
    assert key(nn.Sequential(Blur(3))) != key(nn.Sequential(Blur(5)))
