import pytest
import timm
import torch
import torch.nn.functional as F

from lightning_recall.adaptation.models import BackboneEncoder

BACKBONES = ["test_efficientnet", "test_resnet", "test_convnext", "test_vit"]


def encoder(backbone="test_efficientnet", **kwargs):
    torch.manual_seed(0)
    return BackboneEncoder(backbone, **kwargs)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_features_are_those_of_timm(backbone):
    network = encoder(backbone, bottleneck_dim=None).eval()
    model = timm.create_model(backbone, num_classes=0).eval()
    model.load_state_dict(network.backbone.state_dict())
    size = model.pretrained_cfg["input_size"][1:]
    images = torch.randn(2, 3, *size)
    expected = model(images)
    assert network.feature_dim == expected.shape[1]
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
    assert (network.mean, network.std) == (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


def test_the_bottleneck_is_a_linear_layer_with_batch_norm_and_relu():
    network = encoder(bottleneck_dim=7)
    images = torch.randn(5, 3, 64, 64)
    network.backbone.eval()
    pooled = network.backbone(images)
    linear = network.bottleneck[0]
    projected = pooled @ linear.weight.T + linear.bias
    normalised = (projected - projected.mean(0)) / (projected.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(network(images), F.relu(normalised), rtol=1e-3, atol=1e-4)
    assert network.feature_dim == 7


def test_all_parameters_get_gradients():
    network = encoder("test_resnet", bottleneck_dim=4)
    network(torch.randn(4, 3, 64, 64)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("num_classes", [0, 7])
def test_pretrained_weights_are_read_from_a_file(num_classes, tmp_path):
    file = str(tmp_path / "weights.pth")
    state = timm.create_model("test_resnet", num_classes=num_classes).state_dict()
    torch.save(state, file)
    loaded = dict(encoder("test_resnet", pretrained=file).backbone.named_parameters())
    assert len(loaded) > 10
    assert all(torch.equal(parameter, state[key]) for key, parameter in loaded.items())


def test_weights_of_another_backbone_raise(tmp_path):
    file = str(tmp_path / "weights.pth")
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    with pytest.raises(ValueError, match=rf"^{file} does not contain the weights of test_efficientnet: \d+ are missi"):
        encoder(pretrained=file)
    with pytest.raises(ValueError, match=r"no such file: nowhere\.pth"):
        encoder(pretrained="nowhere.pth")


def test_a_size_that_the_backbone_rejects_raises():
    with pytest.raises(ValueError, match=r"does not accept images of 45 x 61 pixels .*: Input height"):
        encoder("test_vit").eval()(torch.randn(2, 3, 45, 61))
    resized = encoder("test_vit", backbone_kwargs={"img_size": 32}).eval()
    assert resized(torch.randn(2, 3, 32, 32)).shape == (2, 256)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet81"}, r"timm has no model named 'resnet81'. Similar: .*resnet"),
        ({"backbone_kwargs": {"no_such": 1}}, r"does not accept backbone_kwargs {no_such: 1}"),
        ({"backbone_kwargs": {"num_classes": 3}}, r"must not contain num_classes"),
        ({"bottleneck_dim": 0}, r"bottleneck_dim must be at least 1, got 0"),
    ],
)
def test_wrong_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        encoder(**settings)
