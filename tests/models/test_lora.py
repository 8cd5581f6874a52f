import copy
import sys

import pytest
import torch
from torch import nn

from lightning_recall import ImageEmbedder, chunked_forward
from lightning_recall.models import LoRAEmbedder
from lightning_recall.models.lora import can_be_adapted

pytest.importorskip("peft")  # an extra

SIZES = {"test_vit": 32, "test_resnet": 64, "test_efficientnet": 64}


def adapted(name, **kwargs):
    settings = {"backbone_kwargs": {"img_size": 32}} if name == "test_vit" else {}
    embedder = ImageEmbedder(name, 8, pretrained=False, freeze_batch_norm=True, **settings)
    lora = LoRAEmbedder(embedder, **{"rank": 4, **kwargs}).double()
    for key, parameter in lora.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.1)  # as after some steps
    return lora


def images(name, count=6):
    return torch.rand(count, 3, SIZES[name], SIZES[name], dtype=torch.float64)


@pytest.mark.parametrize("name", SIZES)
def test_chunks_with_dropout_have_the_gradient_of_one_graph(name):
    lora, batch, weights = adapted(name, dropout=0.3), images(name), torch.randn(6, 8, dtype=torch.float64)

    def gradients(forward):
        torch.manual_seed(1)
        lora.zero_grad()
        (forward() * weights).sum().backward()
        return {key: p.grad.clone() for key, p in lora.named_parameters() if p.grad is not None}

    expected = gradients(lambda: torch.cat([lora(chunk) for chunk in batch.split(2)]))
    found = gradients(lambda: chunked_forward(lora, list(batch.split(2)), 2))
    trained = {key for key, p in lora.named_parameters() if p.requires_grad}
    assert set(expected) == set(found) == trained
    assert any("lora_A" in key for key in trained)
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-12, rtol=0)
    without_dropout = gradients(lambda: lora.eval()(batch))
    assert not torch.allclose(expected["embedder.projection.1.weight"], without_dropout["embedder.projection.1.weight"])


@pytest.mark.parametrize("name", SIZES)
def test_merged_is_the_plain_embedder_with_equal_embeddings(name):
    lora, batch = adapted(name, dropout=0.3).eval(), images(name)
    before = {key: value.clone() for key, value in lora.state_dict().items()}
    merged, plain = lora.merged(), ImageEmbedder(name, 8, pretrained=False)
    assert set(merged.state_dict()) == set(plain.state_dict())
    assert all(parameter.requires_grad for parameter in merged.parameters())
    torch.testing.assert_close(merged(batch), lora(batch), atol=1e-12, rtol=0)
    assert all(torch.equal(value, before[key]) for key, value in lora.state_dict().items())
    for key, parameter in lora.named_parameters():
        if "lora_B" in key:
            nn.init.zeros_(parameter)
    assert (lora(batch) - merged(batch)).abs().max() > 1e-3


def test_only_the_matrices_and_the_head_are_trained():
    lora = adapted("test_vit")
    trained = {key for key, p in lora.named_parameters() if p.requires_grad}
    assert {key for key in trained if "lora" not in key} == {
        key for key, _ in lora.named_parameters() if ".projection" in key
    }
    lora.train().freeze_batch_norm = True
    assert lora.embedder.freeze_batch_norm
    assert (lora.image_size, lora.num_features, lora.head) == (32, 64, lora.embedder.head)
    features = lora.features(images("test_vit"))
    torch.testing.assert_close(lora(features), nn.functional.normalize(lora.head(features), dim=1))
    kwargs = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2}
    fixed = LoRAEmbedder(ImageEmbedder("vit_base_patch16_224", 8, pretrained=False, backbone_kwargs=kwargs))
    with pytest.raises(ValueError, match="does not accept images of 64 x 64 pixels"):
        fixed.check_image_size(64)


def test_starts_as_the_embedder_itself():
    embedder = ImageEmbedder("test_resnet", 8, pretrained=False).eval()
    batch = torch.rand(2, 3, 64, 64)
    expected = embedder(batch)
    torch.testing.assert_close(LoRAEmbedder(embedder)(batch), expected)


def test_copies_and_checkpoints():
    lora, batch = adapted("test_vit").eval(), images("test_vit")
    other, average = adapted("test_vit").eval(), copy.deepcopy(lora)
    assert torch.equal(average(batch), lora(batch))
    assert not torch.allclose(other(batch), lora(batch))
    other.load_state_dict(lora.state_dict())
    assert torch.equal(other(batch), lora(batch))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0}, "alpha must be a finite number above 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"target_modules": ["qkvv"]}, r"VisionTransformer has no layer named 'qkvv'. Similar: .*qkv"),
        ({"target_modules": ["norm1"]}, r"LoRA cannot adapt blocks.0.norm1 \(LayerNorm\) of VisionTransformer"),
        ({"target_modules": []}, "one or more names, got"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        adapted("test_vit", **settings)


def test_embedders_that_cannot_be_adapted():
    with pytest.raises(ValueError, match="Linear has no backbone to adapt"):
        LoRAEmbedder(nn.Linear(2, 2))
    flat = nn.Flatten()
    flat.num_features = 12
    with pytest.raises(ValueError, match="Flatten has no linear or convolution layers that LoRA can adapt"):
        LoRAEmbedder(ImageEmbedder(flat, 8))
    with pytest.raises(ValueError, match="wrap an embedder only once"):
        LoRAEmbedder(adapted("test_vit").embedder)


def test_targets_are_names_or_ends_of_names():
    lora = adapted("test_vit", target_modules=["qkv", "blocks.0.mlp.fc1"])
    names = {name for name, module in lora.backbone.named_modules() if hasattr(module, "lora_A")}
    assert names == {f"blocks.{block}.attn.qkv" for block in range(6)} | {"blocks.0.mlp.fc1"}


def test_layers_whose_weight_is_used_without_calling_them_are_left_out():
    kwargs = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2}
    embedder = ImageEmbedder("beit_base_patch16_224", 8, pretrained=False, backbone_kwargs=kwargs)
    lora = LoRAEmbedder(embedder)
    lora(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in lora.parameters() if p.requires_grad)
    assert not hasattr(lora.backbone.blocks[0].attn.qkv, "lora_A")


def test_without_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[lora\]"'):
        adapted("test_vit")


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(2, 2), True),
        (nn.Conv2d(4, 4, 3, padding=1), True),
        (nn.Conv2d(4, 4, 3, groups=2), False),
        (nn.Conv2d(4, 4, 3, dilation=2), False),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), False),
        (type("Standardised", (nn.Conv2d,), {})(4, 4, 3), False),
        (nn.LayerNorm(2), False),
    ],
)
def test_layers_that_can_be_adapted(layer, expected):
    assert can_be_adapted(layer) is expected
