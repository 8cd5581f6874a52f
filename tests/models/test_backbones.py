"""One small model of each family, and what is wrong with a name, an argument or a size."""

import pytest
import timm
import torch
from torch import nn

from lightning_recall import ImageEmbedder, chunked_forward
from lightning_recall.models import GeM
from lightning_recall.models.backbones import meta_forward

VIT = {"depth": 2, "embed_dim": 48, "num_heads": 2}
SWIN = {"img_size": 64, "depths": (1, 1), "num_heads": (1, 2), "embed_dim": 24, "window_size": 4}
FAMILIES = {
    "test_vit": {"img_size": 64},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56, **VIT},
    "vit_small_patch16_dinov3": {"img_size": 64, **VIT},
    "vit_base_patch16_siglip_224": {"img_size": 64, **VIT},
    "vit_base_patch32_clip_224": {"img_size": 64, **VIT},
    "eva02_tiny_patch14_224": {"img_size": 56, **VIT},
    "beit_base_patch16_224": {"img_size": 64, **VIT},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, **VIT},
    "cait_xxs24_224": {"img_size": 32, "depth": 1},
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "maxvit_rmlp_pico_rw_256": {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": (32, 32, 32, 64)},
    "hiera_tiny_224": {"img_size": 64, "stages": (1, 1, 1, 1), "embed_dim": 24},
    "mixer_s16_224": {"img_size": 32},
    **{name: {} for name in ("test_convnext", "test_resnet", "test_nfnet", "test_efficientnet", "test_byobnet")},
    **{name: {} for name in ("mobilenetv4_conv_small", "mobilenetv3_small_050", "fastvit_t8", "regnetx_002")},
    **{name: {} for name in ("edgenext_xx_small", "ghostnet_050", "efficientvit_b0", "pvt_v2_b0", "mobilevit_xxs")},
}


def small(name, embedding_dim=8, **kwargs):
    settings = {"backbone_kwargs": FAMILIES[name], "freeze_batch_norm": True, "pretrained": False}
    return ImageEmbedder(name, embedding_dim, **{**settings, **kwargs})


def pixels(name, count=4):
    size = FAMILIES[name].get("img_size", 64)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def gradient(embedder, forward):
    embedder.zero_grad()
    torch.manual_seed(1)
    embeddings = forward()
    (embeddings * torch.linspace(-1, 1, embeddings.numel()).reshape(embeddings.shape)).sum().backward()
    return {name: p.grad.clone() for name, p in embedder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_each_family_embeds_trains_in_chunks_and_reloads(name):
    embedder, images = small(name), pixels(name)
    assert embedder.eval()(images).detach().norm(dim=1).tolist() == pytest.approx([1] * 4)
    embedder.train()
    expected = gradient(embedder, lambda: torch.cat([embedder(part) for part in images.split(2)]))
    found = gradient(embedder, lambda: chunked_forward(embedder, images, 2))
    assert set(found) == set(expected) == {name for name, _ in embedder.named_parameters()}  # DDP: all are used
    total = torch.stack([value.norm() for value in expected.values()]).norm()
    assert total > 1e-3
    assert torch.stack([(found[key] - expected[key]).norm() for key in found]).norm() < 1e-4 * total
    other = small(name)
    other.load_state_dict(embedder.state_dict())
    assert torch.equal(other.eval()(images), embedder.eval()(images))


def plain(name, **kwargs):
    return timm.create_model(name, num_classes=0, **{**FAMILIES[name], **kwargs})


@pytest.mark.parametrize(
    "name",
    [name for name in FAMILIES if name.startswith(("vit", "eva", "beit", "deit", "cait", "swin", "hiera", "mixer"))],
)
def test_other_backbones_are_pooled_by_timm(name):
    embedder, images, model = small(name).eval(), pixels(name), plain(name).eval()
    model.load_state_dict(embedder.backbone.state_dict())
    torch.testing.assert_close(embedder.features(images), model(embedder.normalise(images)))
    assert isinstance(embedder.pooling, nn.Identity)


@pytest.mark.parametrize("pooling", ["gem", "avg", "token"])
@pytest.mark.parametrize(
    "name", ["vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224", "eva02_tiny_patch14_224"]
)
def test_tokens_are_pooled_as_asked(name, pooling):
    if "siglip" in name and pooling == "token":
        with pytest.raises(ValueError, match="siglip_224 has no class token: pooling must be null, gem or avg"):
            small(name, pooling=pooling)
        return
    embedder, images = small(name, pooling=pooling).eval(), pixels(name)
    model = plain(name).eval()
    model.load_state_dict(embedder.backbone.state_dict(), strict=False)  # without attention pooling
    model.reset_classifier(0, "")
    tokens = model(embedder.normalise(images))
    patches = tokens[:, model.num_prefix_tokens :]
    if pooling == "gem":
        expected = patches.clamp(min=1e-6).pow(3).mean(1).pow(1 / 3)
    else:
        expected = patches.mean(1) if pooling == "avg" else tokens[:, 0]
    torch.testing.assert_close(embedder.features(images), expected, rtol=1e-4, atol=1e-5)
    assert set(gradient(embedder, lambda: embedder(images))) == {name for name, _ in embedder.named_parameters()}


def test_maps_with_channels_last_are_pooled_as_asked():
    name, images = "swin_tiny_patch4_window7_224", pixels("swin_tiny_patch4_window7_224")
    own, average, gem = (small(name, pooling=pooling).eval() for pooling in (None, "avg", "gem"))
    for embedder in (average, gem):
        embedder.backbone.load_state_dict(own.backbone.state_dict())
    torch.testing.assert_close(average.features(images), own.features(images))  # timm's pooling is the average
    maps = gem.backbone(gem.normalise(images))  # (B, H, W, C)
    torch.testing.assert_close(gem.features(images), GeM()(maps.permute(0, 3, 1, 2)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tf_efficientnet_lite00", r"no model named 'tf_efficientnet_lite00'. Similar: tf_efficientnet_lite0"),
        ("timm/resnet18.a1_in1k", r"named hf-hub:owner/name, a folder"),
        ("resnet18.a1_in22k", r"no weights named 'resnet18.a1_in22k'. Known: .*resnet18.a1_in1k"),
        ("local-dir:/nowhere", r"no such file: /nowhere/config.json"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        ImageEmbedder(name, pretrained=False)


def test_a_name_that_the_hub_does_not_know(monkeypatch):
    def offline(*_, **__):
        raise OSError("404 Client Error.\nRepository Not Found for url")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(
        ValueError, match=r"^hf-hub:nobody/none was not found: 404 Client Error\. Check the name at .*$"
    ):
        ImageEmbedder("hf-hub:nobody/none")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone_kwargs": {"depht": 2}}, r"test_vit does not accept backbone_kwargs {depht: 2}: .*'depht'\.$"),
        ({"backbone_kwargs": {"num_classes": 2}}, "must not contain num_classes"),
        (
            {"backbone_kwargs": {"global_pool": "avg"}, "pooling": "gem"},
            "global_pool: avg in backbone_kwargs pools alre",
        ),
        ({"embedding_dim": []}, "list of one or more integers"),
        ({"embedding_dim": [8, 0]}, "embedding_dim must be at least 1, got 0"),
        ({"embedding_dim": None, "norm": "batch"}, "norm: batch needs an embedding_dim"),
        ({"norm": "group"}, "norm must be layer, batch or null, got 'group'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageEmbedder("test_vit", **{"embedding_dim": 8, "pretrained": False, **settings})


def test_settings_of_timm_models_do_not_apply_to_own_modules():
    net = nn.Flatten()
    net.num_features = 8
    with pytest.raises(ValueError, match="pass them to Flatten itself"):
        ImageEmbedder(net, 8, backbone_kwargs={"depth": 2})
    with pytest.raises(ValueError, match="pooling: token applies to the name of a timm model"):
        ImageEmbedder(net, 8, pooling="token")


def test_a_folder_with_config_and_weights(tmp_path):
    timm.models.save_for_hf(
        published := timm.create_model("test_vit", img_size=64), tmp_path, model_args={"img_size": 64}
    )
    embedder = ImageEmbedder(f"local-dir:{tmp_path}", 8)
    for key, value in embedder.backbone.state_dict().items():
        assert torch.equal(value, published.state_dict()[key])
    assert embedder(torch.zeros(2, 3, 64, 64)).shape == (2, 8)
    (tmp_path / "pytorch_model.bin").unlink()
    timm.models.save_for_hf(timm.create_model("test_resnet"), tmp_path / "other")
    (tmp_path / "other" / "pytorch_model.bin").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"^{tmp_path} does not contain the weights of local-dir:.* are missing .*$"):
        ImageEmbedder(f"local-dir:{tmp_path}", 8)


def test_backbone_kwargs_change_the_model():
    embedder = ImageEmbedder("test_vit", 8, pretrained=False, backbone_kwargs={"drop_path_rate": 0.5, "in_chans": 1})
    assert embedder.backbone.blocks[-1].drop_path1.drop_prob == 0.5
    assert embedder(torch.zeros(2, 1, 160, 160)).shape == (2, 8)
    kwargs = {"img_size": 64, "dynamic_img_size": True, **VIT}
    dynamic = ImageEmbedder("vit_base_patch32_clip_224", 8, pretrained=False, backbone_kwargs=kwargs)
    dynamic.check_image_size(96)
    assert dynamic(torch.zeros(2, 3, 96, 96)).shape == (2, 8)


def test_image_size_is_known_and_checked():
    assert (small("test_vit").image_size, small("test_resnet").image_size) == (64, 160)
    embedder = small("vit_base_patch32_clip_224", embedding_dim=None)
    embedder.check_image_size(64)
    small("fastvit_t8").check_image_size((96, 130))
    message = r"^VisionTransformer does not accept images of 96 x 96 pixels \(.*\): use 64 x 64, .* {img_size: 96}\.$"
    for attempt in (lambda: embedder.check_image_size(96), lambda: embedder(torch.zeros(2, 3, 96, 96))):
        with pytest.raises(ValueError, match=message):
            attempt()
    with pytest.raises(ValueError, match=r"does not accept images of 80 x 96 pixels .* {img_size: \[80, 96\]}"):
        small("swin_tiny_patch4_window7_224")(torch.zeros(2, 3, 80, 96))


def test_other_errors_of_a_backbone_are_not_hidden():
    embedder = small("test_vit")
    embedder.backbone.norm.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        embedder(torch.zeros(2, 3, 64, 64))


def test_the_meta_device_computes_shapes_without_touching_the_model():
    model, state = plain("test_resnet"), torch.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert meta_forward(model, (2, 3, 64, 64)).device.type == "meta"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
