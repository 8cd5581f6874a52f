from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_recall.adaptation.models.digits import (
    DigitDiscriminator,
    DigitEncoder,
    DigitGenerator,
    FeatureClassifier,
    GaussianEncoder,
)
from lightning_recall.adaptation.models.images import Upsampling

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def numbers(network):
    return sum(p.numel() for p in network.parameters())


def test_the_networks_have_the_layers_of_the_released_code():
    """Numbers of parameters, counted from the layers in SEEDS.md's list: weights, biases, and two of BatchNorm."""
    encoder = GaussianEncoder(DigitEncoder())
    convolutions = 25 * (3 * 64 + 64 * 64 + 64 * 128) + 64 + 64 + 128
    assert numbers(encoder) == convolutions + 2 * (128 * 128 + 128)
    assert numbers(FeatureClassifier(256, 10)) == 256 * 128 + 128 + 128 * 10 + 10
    weights = 4 * 779 * 512 + 16 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 3)
    assert numbers(DigitGenerator(779)) == weights + 2 * (512 + 256 + 128 + 64)
    channels = [3, 64, 128, 256, 128]
    heads = (128 * 10 + 10) + (128 * 64 + 64) + (64 + 1)
    assert numbers(DigitDiscriminator(10)) == sum(9 * a * b + 3 * b for a, b in pairwise(channels)) + heads


def test_outputs_have_their_shapes_and_ranges():
    encoder = GaussianEncoder(DigitEncoder(4), 6)
    features = encoder(IMAGES)
    assert features.shape == (2, encoder.feature_dim) == (2, 12)
    images = DigitGenerator(12, 4)(100 * features)
    assert images.shape == IMAGES.shape
    assert images.abs().max() <= 1
    judgement = DigitDiscriminator(5, 4, 7)(images)
    assert [part.shape for part in judgement] == [(2, 5), (2, 7), (2,)]


def norm_of(inputs, layer):
    """BatchNorm in training."""
    return F.batch_norm(inputs, None, None, layer.weight, layer.bias, training=True)


def test_the_encoder_layer_by_layer():
    encoder = GaussianEncoder(DigitEncoder(4), 6)
    x = IMAGES
    for number, layer in enumerate(encoder.backbone.layers[::3]):
        x = F.relu(F.conv2d(x, layer.weight, layer.bias))
        x = F.max_pool2d(x, 2) if number < 2 else x
    expected = [F.linear(x.flatten(1), part.weight, part.bias) for part in (encoder.mu, encoder.log_variance)]
    torch.testing.assert_close(encoder(IMAGES), torch.cat(expected, dim=1))


def test_the_generator_layer_by_layer():
    network, vectors = DigitGenerator(7, 4), torch.randn(2, 7)
    x = F.conv_transpose2d(vectors[:, :, None, None], network.layers[0].weight)
    for number in range(4):
        norm, _, layer = network.layers[3 * number + 1 : 3 * number + 4]
        x = F.conv_transpose2d(F.relu(norm_of(x, norm)), layer.weight, stride=2, padding=1)
    torch.testing.assert_close(network(vectors), torch.tanh(x))


def test_the_discriminator_layer_by_layer():
    network = DigitDiscriminator(5, 4, 7)
    x = IMAGES
    for number, size in enumerate((2, 2, 2, 4)):
        layer, norm = network.layers[4 * number : 4 * number + 2]
        x = norm_of(F.conv2d(x, layer.weight, layer.bias, padding=1), norm)
        x = F.max_pool2d(F.leaky_relu(x, 0.2), size)
    classes, embedding, source = (network.classes, network.embedding, network.source)
    expected = [F.linear(x.flatten(1), layer.weight, layer.bias) for layer in (classes, embedding)]
    expected.append(F.linear(expected[1], source.weight, source.bias)[:, 0])
    torch.testing.assert_close([*network(IMAGES)], expected)


def test_pooling_before_the_activation_changes_nothing():
    network = DigitDiscriminator(5, 4).eval()
    features = IMAGES
    for number in range(0, 16, 4):
        convolution, norm, pool, activation = network.layers[number : number + 4]
        features = pool(activation(norm(convolution(features)).clone()))
    assert torch.equal(network.layers(IMAGES), features.flatten(1))


@pytest.mark.parametrize(
    ("size", "kernel"), [((1, 1), (2,)), ((2, 2), (4, 2, 1)), ((1, 2), (4, 2, 1)), ((4, 4), (4, 2, 1))]
)
def test_upsampling_is_a_transposed_convolution_with_its_gradient(size, kernel):
    layer = Upsampling(5, 3, *kernel).double()
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    expected = nn.ConvTranspose2d(5, 3, *kernel, bias=False).double()
    expected.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), expected(x), atol=1e-12, rtol=0)
    found = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])
    wanted = torch.autograd.grad(expected(x).square().sum(), [x, expected.weight])
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


def test_initial_weights_have_the_released_spread():
    torch.manual_seed(0)
    generator, discriminator, encoder = DigitGenerator(779), DigitDiscriminator(10), GaussianEncoder(DigitEncoder())
    for network in (generator, discriminator, encoder):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            elif isinstance(layer, nn.Linear) and layer.weight.numel() > 1000:
                assert layer.weight.std().item() == pytest.approx(0.1, rel=0.05)
            elif isinstance(layer, nn.BatchNorm2d):
                assert layer.weight.mean().item() == pytest.approx(1, abs=0.02)
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.35)
            if isinstance(layer, nn.Linear | nn.BatchNorm2d):
                assert not layer.bias.any()


def test_the_gaussian_encoder_passes_on_the_normalisation():
    assert GaussianEncoder(DigitEncoder(2)).mean == (0.44, 0.44, 0.44)
    assert GaussianEncoder(DigitEncoder(2)).std == (0.19, 0.19, 0.19)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DigitEncoder(0), "width must be at least 1, got 0"),
        (lambda: GaussianEncoder(DigitEncoder(2), 0), "latent_dim must be at least 1"),
        (lambda: FeatureClassifier(4, 1), "num_classes must be at least 2, got 1"),
        (lambda: DigitGenerator(0), "input_dim must be at least 1"),
        (lambda: DigitDiscriminator(2, embedding_dim=0), "embedding_dim must be at least 1"),
    ],
)
def test_numbers_out_of_range_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()
