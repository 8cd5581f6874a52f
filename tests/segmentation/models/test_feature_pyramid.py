import pytest
import timm
import torch

from lightning_recall.segmentation.models import FeaturePyramidSegmenter
from lightning_recall.segmentation.models.feature_pyramid import pyramid_levels


def segmenter(backbone="test_efficientnet", **kwargs):
    torch.manual_seed(0)
    return FeaturePyramidSegmenter(5, backbone, channels=8, **kwargs).eval()


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "test_convnext", "test_mambaout", "test_vit"])
@pytest.mark.parametrize("size", [(64, 96), (45, 61)])
def test_logits_have_the_size_of_the_images(backbone, size):
    kwargs = {"dynamic_img_size": True, "dynamic_img_pad": True} if backbone == "test_vit" else {}
    assert segmenter(backbone, backbone_kwargs=kwargs)(torch.randn(2, 3, *size)).shape == (2, 5, *size)


def test_a_size_that_the_backbone_rejects_raises():
    with pytest.raises(ValueError, match=r"does not accept images of 45 x 61 pixels .*: Input height"):
        segmenter("test_vit")(torch.randn(2, 3, 45, 61))


def test_all_parameters_get_gradients():
    network = segmenter().train()
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])  # two ways in which timm returns features
@pytest.mark.parametrize("num_classes", [0, 7])
def test_pretrained_weights_are_read_from_a_file(name, num_classes, tmp_path, caplog):
    file = str(tmp_path / "weights.pth")
    state = timm.create_model(name, num_classes=num_classes).state_dict()
    torch.save(state, file)
    backbone = segmenter(name, pretrained=file).backbone
    assert [record for record in caplog.records if "nexpected" in record.getMessage()] == []
    loaded = dict(backbone.named_parameters())
    assert len(loaded) > 10
    assert all(torch.equal(parameter, state[key]) for key, parameter in loaded.items())


def test_weights_of_another_backbone_raise(tmp_path):
    file = str(tmp_path / "weights.pth")
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    with pytest.raises(
        ValueError, match=rf"^{file} does not contain the weights of test_efficientnet: \d+ are missing"
    ):
        segmenter(pretrained=file)
    with pytest.raises(ValueError, match=r"no such file: nowhere\.pth"):
        segmenter(pretrained="nowhere.pth")


def test_mean_and_std_are_those_of_the_backbone():
    for name in ("test_efficientnet", "tf_efficientnet_lite0"):
        config = timm.get_pretrained_cfg(name)
        network = segmenter(name)
        assert (network.mean, network.std) == (config.mean, config.std)


def test_every_level_of_the_pyramid_counts():
    network = segmenter()
    images = torch.randn(1, 3, 64, 64)
    before = network(images)
    assert len(network.levels) == 4
    for block in network.pyramid.layer_blocks:
        saved = block[0].bias.clone()
        with torch.no_grad():
            block[0].bias += 1
            assert not torch.allclose(network(images), before)
            block[0].bias.copy_(saved)
    assert torch.equal(network(images), before)


def test_levels_of_a_pyramid():
    assert pyramid_levels([2, 4, 8, 16, 32]) == [1, 2, 3, 4]
    assert pyramid_levels([4, 8, 16, 32]) == [0, 1, 2, 3]
    assert pyramid_levels([16, 16, 16]) == [0, 1, 2]
    assert pyramid_levels([1, 2]) == [0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet81"}, r"timm has no model named 'resnet81'. Similar: .*resnet"),
        ({"backbone": "test_mambaout", "backbone_kwargs": {"no_such": 1}}, r"no_such"),
        ({"backbone_kwargs": {"pretrained": True}}, r"must not contain pretrained"),
        ({"num_classes": 0}, r"num_classes must be at least 1, got 0"),
        ({"channels": 0}, r"channels must be at least 1, got 0"),
    ],
)
def test_wrong_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        FeaturePyramidSegmenter(**{"num_classes": 5, "backbone": "test_efficientnet", **settings})
