import pytest
import torch

from lightning_recall.adaptation.models import DigitDiscriminator, DigitGenerator, ImageDiscriminator, ImageGenerator
from lightning_recall.adaptation.models.images import num_added_stages

PAIRS = [
    (ImageGenerator, DigitGenerator, {"input_dim": 7}, torch.randn(4, 7)),
    (ImageDiscriminator, DigitDiscriminator, {"num_classes": 3, "embedding_dim": 5}, torch.randn(4, 3, 32, 32)),
]


@pytest.mark.parametrize(("general", "released", "settings", "inputs"), PAIRS)
def test_networks_for_digits_are_the_released_ones(general, released, settings, inputs):
    networks = []
    for build, extra in ((general, {"image_size": 32}), (released, {})):
        torch.manual_seed(3)
        networks.append(build(**settings, **extra, width=2))
    states = [network.state_dict() for network in networks]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    outputs = [network(inputs) for network in networks]
    for first, second in zip(*outputs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_images_have_the_size(size):
    images = ImageGenerator(5, size, width=2)(torch.randn(3, 5))
    assert images.shape == (3, 3, size, size)
    assert images.abs().max() <= 1
    classes, embedding, source = ImageDiscriminator(4, size, width=2, embedding_dim=6)(images)
    assert (classes.shape, embedding.shape, source.shape) == ((3, 4), (3, 6), (3,))


def test_larger_images_have_as_wide_layers():
    def widths(network):
        return [layer.out_channels for layer in network.layers if hasattr(layer, "out_channels")]

    assert widths(ImageGenerator(5, 128, width=2)) == [16, 16, 16, 8, 4, 2, 3]
    assert widths(ImageDiscriminator(4, 128, width=2)) == [2, 4, 8, 8, 8, 4]


def test_stages():
    assert [num_added_stages(size) for size in (32, 64, 128, 256)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (ImageGenerator, {"input_dim": 3, "image_size": 48}, "power of two from 32, such as 64 or 128, got 48"),
        (ImageGenerator, {"input_dim": 3, "image_size": 16}, "image_size must be at least 32, got 16"),
        (ImageGenerator, {"input_dim": 0}, "input_dim must be at least 1, got 0"),
        (ImageGenerator, {"input_dim": 3, "width": 0}, "width must be at least 1, got 0"),
        (ImageDiscriminator, {"num_classes": 1}, "num_classes must be at least 2, got 1"),
        (ImageDiscriminator, {"num_classes": 3, "image_size": 33}, "power of two"),
        (ImageDiscriminator, {"num_classes": 3, "embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
    ],
)
def test_wrong_settings_raise(build, settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)
