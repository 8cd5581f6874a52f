import pytest
import torch
from torch import nn

from lightning_recall.adaptation.parameter_groups import adaptation_groups


class Encoder(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.bottleneck = nn.Linear(4, 2)


class Module(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.classifier = encoder, nn.Linear(2, 3)


def test_without_a_rate_there_is_one_group():
    module = Module(Encoder(nn.Linear(4, 4)))
    module.classifier.bias.requires_grad_(False)
    (group,) = adaptation_groups(module, None)
    assert set(group) == {"params"}
    assert len(group["params"]) == 5


@pytest.mark.parametrize("nested", [False, True])
def test_new_layers_have_their_own_rate(nested):
    inner = nn.Linear(4, 4)
    module = Module(Encoder(Encoder(inner) if nested else inner))
    backbone, rest = adaptation_groups(module, 0.01)
    assert {id(p) for p in backbone["params"]} == {id(p) for p in inner.parameters()}
    assert "lr" not in backbone
    assert rest["lr"] == 0.01
    assert len(backbone["params"]) + len(rest["params"]) == len(list(module.parameters()))
    optimizer = torch.optim.SGD([backbone, rest], lr=0.001, weight_decay=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.001, 0.01]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_an_encoder_without_backbone():
    with pytest.raises(ValueError, match=r"head_lr=0.1 needs a network with an attribute `backbone`, which Linear"):
        adaptation_groups(Module(nn.Linear(4, 2)), 0.1)
