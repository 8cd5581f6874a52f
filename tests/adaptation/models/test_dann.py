import pytest
import torch
from torch import nn

from lightning_recall.adaptation.models.dann import DANNClassifier, DANNEncoder
from lightning_recall.adaptation.models.discriminator import FeatureDiscriminator


def layers(network):
    return [layer for layer in network.modules() if not isinstance(layer, nn.Sequential) and layer is not network]


def test_the_encoder_has_the_layers_of_the_released_code():
    torch.manual_seed(0)
    encoder = DANNEncoder().double().eval()
    for layer in layers(encoder):
        if isinstance(layer, nn.BatchNorm2d):  # other than the identity
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    first, norm_1, second, norm_2 = (layer for layer in layers(encoder) if hasattr(layer, "weight"))
    images = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    maps = torch.relu(nn.functional.max_pool2d(norm_1(first(images)), 2))
    assert maps.shape == (2, 64, 12, 12)
    maps = torch.relu(nn.functional.max_pool2d(norm_2(second(maps)), 2))
    assert maps.shape == (2, 50, 4, 4)
    torch.testing.assert_close(encoder(images), maps.reshape(2, 800), rtol=0, atol=1e-12)
    assert encoder.feature_dim == 800
    assert sum(p.numel() for p in encoder.parameters()) == 3 * 25 * 64 + 64 + 128 + 64 * 25 * 50 + 50 + 100


def test_dropout_of_the_encoder_drops_whole_maps():
    torch.manual_seed(0)
    features = DANNEncoder().train()(torch.randn(4, 3, 28, 28)).reshape(4, 50, 16)
    dropped = (features == 0).all(2)
    assert 0.25 < dropped.float().mean() < 0.75


def test_classifier_and_discriminator():
    torch.manual_seed(0)
    features = torch.randn(6, 12)
    classifier, discriminator = DANNClassifier(12, 4, hidden_dim=5), FeatureDiscriminator(12, [5])
    assert classifier(features).shape == (6, 4)
    assert discriminator(features).shape == (6,)
    assert classifier.num_classes == 4
    kinds = [type(layer).__name__ for layer in layers(classifier)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in layers(discriminator)] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]


def test_one_logit_is_the_softmax_of_two():
    """The released discriminator has two outputs: the difference of both is our logit."""
    logits = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    two = torch.stack([torch.zeros(3, dtype=torch.float64), logits], dim=1)
    for label in (0, 1):
        released = nn.functional.cross_entropy(two, torch.full((3,), label))
        ours = nn.functional.binary_cross_entropy_with_logits(logits, torch.full((3,), float(label)).double())
        assert released.item() == pytest.approx(ours.item(), abs=1e-12)
