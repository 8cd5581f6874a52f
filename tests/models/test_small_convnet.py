import pytest
import torch

from lightning_recall.models import SmallConvNet


@pytest.mark.parametrize(("in_channels", "image_size"), [(1, 32), (3, 64)])
def test_num_features_is_the_output_width(in_channels, image_size):
    net = SmallConvNet(in_channels, image_size)
    assert net(torch.zeros(2, in_channels, image_size, image_size)).shape == (2, net.num_features)


@pytest.mark.parametrize("image_size", [0, 28])
def test_odd_sizes_are_rejected(image_size):
    with pytest.raises(ValueError, match=f"multiple of 8 pixels, got {image_size}"):
        SmallConvNet(image_size=image_size)
