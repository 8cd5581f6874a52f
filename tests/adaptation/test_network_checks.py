import pytest
import torch
from torch import nn

from lightning_recall.adaptation.network_checks import (
    check_batch_size,
    check_class_logits,
    check_domain_logits,
    check_generated,
    check_input_dim,
    check_same_classes,
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
    check_same_classes(nn.Linear(2, 2), "classifier", 3)


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
