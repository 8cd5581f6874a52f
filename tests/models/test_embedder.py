import pytest
import timm
import torch
import torch.nn.functional as F
from other_device import DEVICE, other_device
from torch import nn

from lightning_recall import ImageEmbedder, chunked_forward
from lightning_recall.models import SmallConvNet

PIXELS = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)


def test_a_timm_convnet_uses_gem():
    embedder = ImageEmbedder("resnet18", embedding_dim=32, pretrained=False)
    embeddings = embedder(PIXELS)
    assert embeddings.shape == (4, 32)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    embeddings.sum().backward()
    assert all(p.grad is not None for p in embedder.parameters())  # DDP fails for unused parameters
    assert embedder.pooling.p.grad.abs() > 0


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vgg11", "efficientvit_b0", "swin_tiny_patch4_window7_224"])
def test_backbones_with_a_hidden_head(name):
    embedder = ImageEmbedder(name, embedding_dim=8, pretrained=False)
    height, width = embedder.backbone.pretrained_cfg["input_size"][1:]
    embedder(torch.zeros(2, 3, height, width)).sum().backward()
    assert all(p.grad is not None for p in embedder.parameters())


def test_a_timm_transformer_uses_its_class_token():
    embedder = ImageEmbedder("vit_tiny_patch16_224", embedding_dim=16, pretrained=False)
    embedder(torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)).sum().backward()
    assert all(p.grad is not None for p in embedder.parameters())
    assert isinstance(embedder.pooling, nn.Identity)
    assert embedder.mean.flatten().tolist() == [0.5, 0.5, 0.5]  # from pretrained_cfg, not ImageNet's


def test_pixels_are_normalised_as_the_backbone_was_trained():
    embedder = ImageEmbedder("resnet18", embedding_dim=8, pretrained=False).eval()
    seen = []
    embedder.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    from_bytes, from_floats = embedder(PIXELS), embedder(PIXELS / 255)
    torch.testing.assert_close(from_bytes, from_floats)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (PIXELS.double() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(seen[0], expected, check_dtype=False, atol=1e-5, rtol=1e-5)


def test_greyscale_images_are_expanded_for_a_colour_backbone():
    embedder = ImageEmbedder("resnet18", embedding_dim=8, pretrained=False).eval()
    grey = PIXELS[:, :1]
    torch.testing.assert_close(embedder(grey), embedder(grey.expand(-1, 3, -1, -1)))


def test_frozen_batch_norm_survives_train():
    embedder = ImageEmbedder("resnet18", embedding_dim=8, pretrained=False, freeze_batch_norm=True)
    before = {name: value.clone() for name, value in embedder.backbone.named_buffers()}
    embedder.eval().train()
    embedder(PIXELS)
    assert embedder.training
    assert all(torch.equal(value, before[name]) for name, value in embedder.backbone.named_buffers())
    assert all(p.requires_grad for p in embedder.parameters())  # scale and shift are still trained


def test_batch_norm_from_scratch_is_not_frozen():
    embedder = ImageEmbedder("resnet18", embedding_dim=8, pretrained=False)
    embedder(PIXELS)
    assert embedder.backbone.bn1.num_batches_tracked == 1


def test_norm_batch_increases_the_variance_of_similarities():
    images = torch.randint(0, 256, (64, 1, 32, 32), dtype=torch.uint8)
    spread = {}
    for norm in ("layer", "batch"):
        embeddings = ImageEmbedder(SmallConvNet(), 64, norm=norm)(images)
        spread[norm] = (embeddings @ embeddings.T)[~torch.eye(64, dtype=torch.bool)].std().item()
    assert spread["batch"] > 0.05 > spread["layer"]


def test_dtype_follows_the_parameters():
    embedder = ImageEmbedder(SmallConvNet(), 8, norm="batch").double()
    assert embedder(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet18x"}, "timm has no model named 'resnet18x'"),
        ({"backbone": "resnet1", "pretrained": False}, "Similar: .*resnet18"),
        ({"backbone": nn.Flatten()}, "has no num_features attribute: set it"),
        ({"backbone": SmallConvNet(), "embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"backbone": "resnet10t", "pretrained": False, "pooling": "token"}, "resnet10t has no class token"),
    ],
)
def test_wrong_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageEmbedder(**arguments)


@pytest.mark.parametrize(
    "name", ["resnet18.tv_in1k", "vit_tiny_patch16_224_in21k"]
)  # the second is a deprecated timm name
@pytest.mark.filterwarnings("ignore:Mapping deprecated model name")
def test_weights_from_a_file(name, tmp_path):
    published = timm.create_model(name, num_classes=10)  # with a classifier, as in published files
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    embedder = ImageEmbedder(name, 8, pretrained=str(tmp_path / "weights.pth"))
    expected = published.state_dict()
    for key, value in embedder.backbone.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert embedder.freeze_batch_norm


def test_weights_that_cannot_be_loaded(tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    with pytest.raises(ValueError, match=r"true, false or the path of a weights file; no such file: .*weights\.pth"):
        ImageEmbedder("resnet18", pretrained=str(file))
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), file)
    with pytest.raises(ValueError, match=r"weights\.pth does not contain the weights of resnet18: .* are missing"):
        ImageEmbedder("resnet18", pretrained=str(file))
    file.write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"weights\.pth does not contain the weights of resnet18"):
        ImageEmbedder("resnet18", pretrained=str(file))

    create_model = timm.create_model

    def offline(*args, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no connection.")
        return create_model(*args, **kwargs)

    monkeypatch.setattr("timm.create_model", offline)
    message = r"Loading the weights of resnet18 failed: no connection. Download .* pretrained=false"
    with pytest.raises(ValueError, match=message):
        ImageEmbedder("resnet18", pretrained=True)


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint16", "uint32", "bool"])
def test_other_integer_dtypes_are_rejected(dtype):
    images = (PIXELS % 2).to(getattr(torch, dtype))
    for module in (small(), torch.compile(small(), backend="eager")):
        with pytest.raises(ValueError, match=rf"uint8, or floats in \[0, 1\], got torch.{dtype}: convert with .to\("):
            module(images)


def small(**kwargs):
    return ImageEmbedder(SmallConvNet(3, 64), 8, norm="batch", **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_floats_far_outside_are_rejected(dtype):
    with pytest.raises(ValueError, match=r"got floats from 0 to 255: divide images in .* by 255"):
        small()(torch.tensor([0.0, 255.0]).to(dtype).repeat(4, 3, 64, 32))
    with pytest.raises(ValueError, match=r"got floats from -1 to 1: "):
        small()(torch.tensor([-1.0, 1.0]).to(dtype).repeat(4, 3, 64, 32))
    normalised = (PIXELS / 255 - 0.45) / 0.226
    with pytest.raises(ValueError, match=r"got floats from -1.99 to 2.4.: .* pass mean=\[0.0\], std=\[1"):
        small()(normalised.to(dtype))


def test_overshoot_and_announced_normalised_images_are_accepted():
    places = torch.arange(64) // 8
    board = ((places[:, None] + places) % 2).float().expand(4, 3, 64, 64)
    sharp = F.interpolate(board, scale_factor=1.3, mode="bicubic")[..., :64, :64]
    assert sharp.min() < -0.24
    assert sharp.max() > 1.24
    assert small()(sharp).isfinite().all()
    seen, embedder = [], small(mean=[0], std=[1])  # integers are allowed
    embedder.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    normalised = (PIXELS / 255 - 0.45) / 0.226
    embedder(normalised)
    assert torch.equal(seen[0], normalised)
    with pytest.raises(ValueError, match="got floats from 0 to 255"):
        embedder(torch.tensor([0.0, 255.0]).repeat(4, 3, 64, 32))
    small().check_range(torch.zeros(0, 3, 64, 64))  # an empty batch is not checked


def test_floats_slightly_outside_are_rejected():
    faint = torch.tensor([-0.3, 0.37]).repeat(4, 3, 64, 32)  # a normalised image of low contrast
    for images, found in ((faint, "-0.3 to 0.37"), (1 - faint, "0.63 to 1.3")):
        with pytest.raises(ValueError, match=f"got floats from {found}: "):
            small()(images)


def test_on_a_cpu_all_batches_of_floats_are_checked():
    embedder = small().eval()
    for _ in range(25):
        embedder(PIXELS / 255)
    with pytest.raises(ValueError, match="got floats from 0 to 255"):
        embedder(torch.tensor([0.0, 255.0]).repeat(4, 3, 64, 32))


def timm_model(name="resnet18", **kwargs):
    return ImageEmbedder(name, 8, pretrained=False, **kwargs)


class Narrow(nn.Conv2d):
    """Its maps do not have `num_features` channels."""

    num_features = 4


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (timm_model, (2, 4, 64, 64), r"\(B, C, H, W\) with C = 1 or 3, as ResNet expects, got \(2, 4, 64, 64\)"),
        (timm_model, (3, 64, 64), r"with C = 1 or 3, .* got \(3, 64, 64\)"),
        (lambda: timm_model(mean=[0.0], std=[1.0]), (2, 1, 64, 64), r"with C = 3, .* got \(2, 1, 64, 64\)"),
        (lambda: timm_model("vit_tiny_patch16_224"), (2, 3, 64, 64), r"Transformer does not accept images .*64.*224"),
        (lambda: ImageEmbedder(SmallConvNet(3)), (2, 1, 32, 32), r"images of shape \(B, 3, 32, 32\), got \(2, 1"),
        (lambda: ImageEmbedder(SmallConvNet(1)), (2, 1, 64, 64), r"images of shape \(B, 1, 32, 32\), got \(2, 1"),
        (
            lambda: ImageEmbedder(Narrow(3, 5, 3), 8, pooling="avg"),
            (2, 3, 9, 9),
            r"Narrow outputs features of shape \(2, 5\) for images of shape \(2, 3, 9, 9\), but its num_features is 4",
        ),
        (lambda: ImageEmbedder(SmallConvNet(3), mean=[0.5] * 3), (2, 2, 32, 32), r"with C = 1 or 3"),
    ],
)
def test_images_of_another_shape_are_rejected(make, shape, message):
    with pytest.raises(ValueError, match=message):
        make()(torch.zeros(shape, dtype=torch.uint8))


def test_only_the_first_batches_on_another_device_are_checked():
    embedder, waits = small().eval(), []
    with torch.no_grad():
        for _ in range(21):
            with other_device() as device:
                embedder.to(DEVICE)(torch.rand(2, 3, 64, 64).to(DEVICE))
            waits.append(sum(device.waits.values()))
    assert waits[0] == waits[19] > 0
    assert waits[20] == 0


def test_exported_and_compiled_embedders_accept_floats():
    embedder, images = small().eval(), PIXELS / 255
    expected = embedder(images)
    exported = torch.export.export(embedder, (images,)).module()
    torch.testing.assert_close(exported(images), expected)
    compiled = torch.compile(embedder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)


def test_batch_norm_can_be_frozen_and_unfrozen_at_any_time():
    embedder = ImageEmbedder("resnet18", embedding_dim=8, pretrained=False).train()
    embedder.freeze_batch_norm = True
    assert not embedder.backbone.bn1.training
    embedder.freeze_batch_norm = False
    assert embedder.backbone.bn1.training
    embedder.eval().freeze_batch_norm = True
    assert not embedder.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [123.7, 116.3, 103.5]}, r"mean must have one value in \[0, 1\] per .* got \[123.7, 116.3, 103.5\]"),
        ({"mean": []}, r"mean must have one value"),
        ({"std": [0.0]}, r"std must have one value in \(0, 1\] per channel, .* got \[0.0\]"),
        ({"std": [58.4]}, r"std must have one value"),
    ],
)
def test_statistics_of_pixels_in_0_to_255_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_channels_last_is_off_where_torch_would_crash():
    embedder = ImageEmbedder("mobileone_s0", 8, pretrained=False)  # strided 1x1 convolution of three channels
    assert not embedder.channels_last
    assert ImageEmbedder("mobileone_s0", 8, pretrained=False, channels_last=True).channels_last


def test_channels_last_does_not_change_the_results():
    plain, fast = (timm_model("test_resnet", channels_last=value, freeze_batch_norm=True) for value in (False, None))
    assert (plain.channels_last, fast.channels_last, timm_model("test_vit").channels_last) == (False, True, False)
    fast.load_state_dict(plain.state_dict())  # as from a checkpoint made before
    seen = []
    fast.backbone.layer4.register_forward_hook(lambda _, __, maps: seen.append(maps))
    results = []
    for embedder in (plain, fast):
        embeddings = chunked_forward(embedder.double(), PIXELS, 2)
        (embeddings * torch.linspace(-1, 1, 8)).sum().backward()
        results.append([embeddings.detach(), *(p.grad for p in embedder.parameters())])
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert fast.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_features_skip_the_backbone():
    embedder = timm_model("test_resnet").eval()
    features = embedder.features(PIXELS)
    assert features.shape == (4, embedder.num_features)
    torch.testing.assert_close(embedder(features), embedder(PIXELS))
    torch.testing.assert_close(embedder(features), F.normalize(embedder.head(features), dim=1))
    with pytest.raises(ValueError, match=rf"Features must be of shape \(B, {embedder.num_features}\), .* got \(4, 7\)"):
        embedder(torch.zeros(4, 7))


def test_widths_of_the_head():
    def layers(embedding_dim, norm):
        head = ImageEmbedder(SmallConvNet(3, 64), embedding_dim, norm=norm).head
        return [(type(layer).__name__, getattr(layer, "out_features", None)) for layer in head.children()]

    assert layers(8, "layer") == layers([8], "layer") == [("LayerNorm", None), ("Linear", 8)]
    assert layers([16, 8], "batch") == [("Linear", 16), ("GELU", None), ("Linear", 8), ("BatchNorm1d", None)]
    assert layers(8, None) == [("Linear", 8)]
    embedder = ImageEmbedder(SmallConvNet(3, 64), None).eval()
    torch.testing.assert_close(embedder(PIXELS), F.normalize(embedder.features(PIXELS), dim=1))
    assert embedder.image_size == 64
