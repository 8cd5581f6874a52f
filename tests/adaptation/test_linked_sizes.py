import pytest
import timm
import torch
from jsonargparse import Namespace
from torch import nn

from lightning_recall.adaptation import linked_sizes
from lightning_recall.adaptation.linked_sizes import feature_dim, generator_input_dim

MODELS = "lightning_recall.adaptation.models"
BACKBONE = Namespace(
    class_path=f"{MODELS}.BackboneEncoder",
    init_args=Namespace(backbone="test_resnet", pretrained="absent.pth", bottleneck_dim=None, backbone_kwargs=None),
)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    monkeypatch.setattr(linked_sizes, "CACHE", {})


def gaussian(backbone, latent_dim):
    return Namespace(
        class_path=f"{MODELS}.GaussianEncoder", init_args=Namespace(backbone=backbone, latent_dim=latent_dim)
    )


class Plain(nn.Module):
    """Reads a value in its constructor, which the meta device does not allow."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)  # draws its weights
        self.feature_dim = int(torch.full((), width))


def test_features_of_an_encoder_are_counted_without_its_weights():
    assert feature_dim(BACKBONE) == timm.create_model("test_resnet").num_features
    assert BACKBONE.init_args.pretrained == "absent.pth"  # unchanged
    digits = Namespace(class_path=f"{MODELS}.DigitEncoder", init_args=Namespace(width=3))
    assert feature_dim(digits) == 6
    assert feature_dim(gaussian(digits, 5)) == 10
    assert feature_dim(gaussian(BACKBONE, 7)) == 14


def test_an_encoder_may_need_memory(monkeypatch):
    monkeypatch.setattr(linked_sizes, "import_object", lambda path: {"own.Plain": Plain}[path])
    assert feature_dim(Namespace(class_path="own.Plain", init_args=Namespace(width=9))) == 9


@pytest.mark.parametrize("path", [f"{MODELS}.DigitEncoder", "own.Plain"])
def test_the_random_state_is_unchanged(path, monkeypatch):
    find = linked_sizes.import_object
    monkeypatch.setattr(linked_sizes, "import_object", lambda path: Plain if path == "own.Plain" else find(path))
    before = torch.get_rng_state()
    assert feature_dim(Namespace(class_path=path, init_args=Namespace(width=4))) in (4, 8)
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_of_the_generator_are_features_condition_and_noise():
    encoder = gaussian(Namespace(class_path=f"{MODELS}.DigitEncoder", init_args=Namespace(width=3)), 128)
    assert generator_input_dim(encoder, 10, 512) == 779  # of the released code


def test_an_encoder_without_feature_dim_raises():
    with pytest.raises(ValueError, match="Flatten has no attribute feature_dim: set it to D"):
        feature_dim(Namespace(class_path="torch.nn.Flatten", init_args=Namespace(start_dim=1)))


def test_the_module_reports_encoders_that_cannot_be_built():
    assert feature_dim(Namespace(class_path=f"{MODELS}.BackboneEncoder", init_args=Namespace(backbone="resnet81"))) == 1
