import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lightning_recall.data import ImageFiles, ImageTransforms, read_image
from lightning_recall.data.resampling import longest_side, random_crop, shorter_side


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (101, 997), (64, 64), (1, 50)])
def test_sizes_are_those_of_torchvision(size):
    width, height = size
    box = (7, 5, 7 + width, 5 + height)
    expected = v2.Resize(96)(torch.zeros(1, height, width)).shape[1:]
    assert shorter_side(96, (2000, 2000), box) == (box, tuple(expected))


def test_random_crops_are_those_of_torchvision():
    crop = v2.RandomResizedCrop(32)
    image = torch.arange(60 * 80).reshape(1, 60, 80)
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = crop.make_params([image])
        torch.manual_seed(seed)
        (left, top, right, bottom), size = random_crop(crop, (500, 500), (10, 20, 90, 80))
        assert (left - 10, top - 20, right - left, bottom - top) == tuple(
            drawn[key] for key in ("left", "top", "width", "height")
        )
        assert size == (32, 32)


def test_the_longer_side_is_that_of_the_whole_image():
    assert longest_side(100, (400, 200), (0, 0, 400, 200)).size == (50, 100)
    assert longest_side(100, (400, 200), (10, 20, 50, 101)).size == (20, 10)
    assert longest_side(100, (400, 200), (0, 0, 1, 1)).size == (1, 1)
    assert longest_side(400, (400, 200), (0, 0, 40, 20)).size == (20, 40)
    assert longest_side(None, (400, 200), (0, 0, 40, 20)).size == (20, 40)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("box", [None, (10, 5, 70, 66), (-5, 10, 100, 90)])
def test_items_equal_torchvision_transforms_of_the_decoded_image(training, box, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (81, 97, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.jpg")
    boxes = None if box is None else [box]
    transforms = ImageTransforms(size=20, reducing_gap=None)
    data = ImageFiles(tmp_path, ["0.jpg"], [0], boxes=boxes, transforms=transforms, training=training)
    reference = v2.Compose(
        [v2.RandomResizedCrop(20), v2.RandomHorizontalFlip()] if training else [v2.Resize(23), v2.CenterCrop(20)]
    )
    for seed in range(10):
        torch.manual_seed(seed)
        expected = reference(read_image(tmp_path / "0.jpg", box=box))
        torch.manual_seed(seed)
        assert torch.equal(data[0][0], expected)
