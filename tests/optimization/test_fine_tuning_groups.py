import pytest
import timm
import torch
from torch import nn

from lightning_recall.optimization.fine_tuning_groups import backbone_groups, decay_groups


def vit():
    return timm.create_model("test_vit", num_classes=0)


def options(module, groups):
    """Name of each parameter -> options of its group."""
    names = {id(p): name for name, p in module.named_parameters()}
    return {names[id(p)]: {k: v for k, v in g.items() if k != "params"} for g in groups for p in g["params"]}


def test_norms_biases_and_tokens_have_no_weight_decay():
    model = vit()
    found = options(model, backbone_groups(model))
    assert set(found) == {name for name, _ in model.named_parameters()}
    without = {name for name, values in found.items() if values == {"weight_decay": 0.0}}
    assert {"pos_embed", "cls_token"} <= without
    assert model.pos_embed.ndim == 3
    assert all(
        (p.ndim <= 1) == (name in without)
        for name, p in model.named_parameters()
        if "pos" not in name and "cls" not in name
    )
    assert all(found[name] == {} for name in found if name not in without)


def test_layers_below_have_smaller_rates():
    model = vit()
    found = options(model, backbone_groups(model, 0.5))
    scale = {name: values.get("lr_scale", 1.0) for name, values in found.items()}
    num_blocks = len(model.blocks)
    depths = {
        "patch_embed.proj.weight": 0,
        "pos_embed": 0,
        "norm.weight": num_blocks,
    }  # timm counts the last norm to the last block
    depths |= {f"blocks.{i}.attn.qkv.weight": i + 1 for i in range(num_blocks)}
    for name, depth in depths.items():
        assert scale[name] == 0.5 ** (num_blocks - depth), name
    assert found["blocks.0.attn.qkv.bias"] == {"weight_decay": 0.0, "lr_scale": 0.5 ** (num_blocks - 1)}


@pytest.mark.parametrize("layer_decay", [0, -0.5, 1.5, float("nan")])
def test_a_decay_out_of_range_raises(layer_decay):
    with pytest.raises(ValueError, match=f"layer_decay must be above 0 and at most 1.*got {layer_decay}"):
        backbone_groups(vit(), layer_decay)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
        self.position = nn.Parameter(torch.zeros(1, 4))

    def no_weight_decay(self):
        return ["position"]


def test_an_own_backbone_has_no_layers():
    own = Own()
    found = options(own, backbone_groups(own))
    assert {name for name in found if found[name]} == {"stem.bias", "norm.weight", "norm.bias", "position"}
    with pytest.raises(ValueError, match=r"layer_decay=0.5 needs a backbone whose layers are known.*Own has none"):
        backbone_groups(own, 0.5)
    own.pretrained_cfg = {}
    with pytest.raises(ValueError, match="Own has none"):
        backbone_groups(own, 0.5)
    assert backbone_groups(own.requires_grad_(False), 0.5) == []


def test_an_own_backbone_may_say_what_its_layers_are():
    own = Own()
    own.group_matcher = lambda **_: {"stem": r"^stem", "norm": r"^norm|^position"}
    found = options(own, backbone_groups(own, 0.5))
    assert found["stem.weight"] == {"lr_scale": 0.5}
    assert found["norm.weight"] == {"weight_decay": 0.0}


def test_named_parameters_are_split_by_their_dimensions():
    named = [("scale", nn.Parameter(torch.ones(()))), ("weight", nn.Parameter(torch.ones(2, 2)))]
    without, with_decay = decay_groups(named, lr=0.5)
    assert (without["params"], without["weight_decay"], without["lr"]) == ([named[0][1]], 0.0, 0.5)
    assert with_decay == {"params": [named[1][1]], "lr": 0.5}
    assert decay_groups([]) == []
