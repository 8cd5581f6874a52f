import pytest
import torch
from torch import nn

from lightning_recall.adaptation import DANNModule
from lightning_recall.adaptation.network_checks import (
    apply_to_features,
    check_batch_size,
    check_class_logits,
    check_domain_logits,
    check_features,
    check_generated,
    check_input_dim,
    check_returns_logits,
)
from lightning_recall.adaptation.network_optimizers import complete_optimizers


def test_one_image_is_refused_only_by_batch_norm_in_training():
    one, two = torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    plain, normed = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    check_batch_size(one, "target", plain)
    check_batch_size(two, "target", plain, normed)
    with pytest.raises(ValueError, match=r"one target image on this process.*batch_size to at least 2.*drop_last=True"):
        check_batch_size(one, "target", plain, normed)
    check_batch_size(one, "target", plain, normed.eval())


def test_shapes_that_fit_pass():
    check_class_logits(torch.zeros(2, 3), 2, 3, "classifier")
    check_domain_logits(torch.zeros(2), 2)
    check_generated(torch.zeros(4, 3, 5, 5), 4, torch.zeros(2, 3, 5, 5))
    check_input_dim(nn.Linear(2, 2), 8, 3, 4)  # no attribute input_dim


@pytest.mark.parametrize("logits", [torch.zeros(2, 4), torch.zeros(3, 3), torch.zeros(2), (torch.zeros(2, 3),)])
def test_wrong_class_logits_raise(logits):
    with pytest.raises(ValueError, match=r"The classifier must return logits of shape \(2, 3\)"):
        check_class_logits(logits, 2, 3, "classifier")


@pytest.mark.parametrize("logits", [torch.zeros(3), torch.zeros(2, 1), torch.zeros(()), None])
def test_wrong_domain_logits_raise(logits):
    with pytest.raises(ValueError, match=r"one domain logit per image, shape \(2,\)") as error:
        check_domain_logits(logits, 2)
    assert ("squeeze" in str(error.value)) == (isinstance(logits, torch.Tensor) and logits.shape == (2, 1))


def test_a_network_for_other_inputs_raises():
    generator = nn.Linear(2, 2)
    generator.input_dim = 14
    check_input_dim(generator, 6, 3, 4)
    with pytest.raises(ValueError, match=r"7 \+ 4 \+ 4 = 15 numbers: set input_dim=15"):
        check_input_dim(generator, 7, 3, 4)


def test_optimizers_of_unknown_networks_raise():
    with pytest.raises(ValueError, match=r"optimizers must have the keys discriminator, .*got \['critic'\]"):
        complete_optimizers({"critic": None})


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((2, 8, 1, 1), r"append torch\.nn\.Flatten\(\)"),
        ((2, 8, 3, 3), r"append torch\.nn\.AdaptiveAvgPool2d\(1\) and torch\.nn\.Flatten\(\)"),
        ((2, 5, 8), "pool the tokens"),
        ((8,), "return only the features"),
    ],
)
def test_features_that_are_not_vectors_raise(shape, advice):
    check_features(torch.zeros(2, 8), 2)
    with pytest.raises(ValueError, match=rf"encoder must return features of shape \(B, D\), B = 2, .*{advice}"):
        check_features(torch.zeros(shape), 2)


def test_an_encoder_that_returns_maps_is_named():
    module = DANNModule(nn.Conv2d(3, 8, 4), nn.Linear(8, 2), nn.Linear(8, 1), num_classes=2)
    with pytest.raises(ValueError, match=r"The encoder must return features .* got a tensor \(2, 8, 1, 1\)"):
        module(torch.zeros(2, 3, 4, 4))


def test_a_network_for_another_number_of_features_is_named():
    assert apply_to_features(nn.Linear(8, 2), torch.zeros(3, 8), "classifier").shape == (3, 2)
    with pytest.raises(ValueError, match=r"classifier is built for another number .* the 8 .* in_features .* to 8"):
        apply_to_features(nn.Linear(9, 2), torch.zeros(3, 8), "classifier")
    with pytest.raises(RuntimeError, match="another fault"):
        apply_to_features(Failing(), torch.zeros(3, 8), "classifier")


class Failing(nn.Module):
    def forward(self, _features):
        raise RuntimeError("another fault")


def test_two_outputs_of_a_discriminator_are_explained():
    with pytest.raises(ValueError, match=r"got a tensor \(4, 2\): two outputs .* give the last layer one output"):
        check_domain_logits(torch.zeros(4, 2), 4)


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.Softmax(1)])
def test_probabilities_instead_of_logits_raise(layer):
    ended = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2), layer))
    plain = nn.Sequential(layer, nn.Linear(4, 2))
    with pytest.raises(ValueError, match=rf"classifier must return logits.*ends with {type(layer).__name__}: remove"):
        DANNModule(nn.Flatten(), ended, plain, num_classes=2)
    with pytest.raises(ValueError, match=r"discriminator must return logits"):
        DANNModule(nn.Flatten(), plain, ended, num_classes=2)
    check_returns_logits(nn.Sequential(), "classifier", (nn.Sigmoid,))
    DANNModule(nn.Flatten(), nn.Sequential(plain, nn.LogSoftmax(1)), plain, num_classes=2)  # the same cross-entropy
