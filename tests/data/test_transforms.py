import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as tv

from lightning_recall.data import ImageTransforms


@pytest.mark.parametrize(
    "settings", [{"size": 0}, {"size": 300, "resize": 256}, {"min_scale": 0.0}, {"min_scale": 1.1}]
)
def test_values_out_of_range_are_rejected(settings):
    with pytest.raises(ValueError, match="1 <= size <= resize and 0 < min_scale <= 1"):
        ImageTransforms(**settings)


@pytest.mark.parametrize("gap", [0, 0.9, float("nan")])
def test_a_reducing_gap_never_enlarges(gap):
    with pytest.raises(ValueError, match="reducing_gap must be at least 1, or None"):
        ImageTransforms(reducing_gap=gap)


@pytest.mark.parametrize("settings", [{"mode": "rgb"}, {"on_error": "Raise"}])
def test_unknown_options_are_rejected(settings):
    with pytest.raises(ValueError, match='mode must be "RGB" or "L", on_error "skip" or "raise"'):
        ImageTransforms(**settings)


def test_one_number_sets_both_sizes():
    assert ImageTransforms().evaluation_sizes == (224, 256)
    assert ImageTransforms(size=96).evaluation_sizes == (96, 110)
    assert ImageTransforms(size=96, resize=96).evaluation_sizes == (96, 96)
    whole = (300, 200), (0, 0, 300, 200)
    choose, then = ImageTransforms(size=96).steps(training=False)
    assert choose(*whole) == (whole[1], (110, 165))
    image = torch.arange(110 * 165).remainder(256).reshape(1, 110, 165).to(torch.uint8)
    assert torch.equal(then(image), tv.center_crop(image, [96]))
    choose, then = ImageTransforms(size=96).steps(training=True)
    assert choose(*whole).size == (96, 96)
    assert {torch.equal(then(image), image) for _ in range(20)} == {True, False}


def test_the_size_of_the_model_is_the_default():
    chosen = ImageTransforms().for_model(384)
    assert (chosen.size, chosen.resize) == (384, 439)
    chosen = ImageTransforms(size=96, flip=False).for_model(384)
    assert (chosen.size, chosen.resize, chosen.flip) == (96, 110, False)
    with pytest.raises(ValueError, match=r"transforms.resize=256 is smaller than size=384, which the model expects"):
        ImageTransforms(resize=256).for_model(384)


def test_a_crop_of_the_middle_is_recognised():
    assert ImageTransforms(size=96, resize=256).sees_only_the_middle
    assert not ImageTransforms(size=96).sees_only_the_middle
    assert not ImageTransforms(size=96, resize=96).sees_only_the_middle
    assert not ImageTransforms(size=96, resize=256, longest_side=300).sees_only_the_middle
    assert not ImageTransforms(size=96, resize=256, eval_transform=nn.Identity()).sees_only_the_middle
