import pytest
import torch
from torch import nn

from lightning_recall.segmentation.fine_tuning import segmentation_groups


class Net(nn.Module):
    def __init__(self, name):
        super().__init__()
        setattr(self, name, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def options(groups):
    return [{name: value for name, value in group.items() if name != "params"} for group in groups]


def test_norms_and_biases_have_no_weight_decay():
    net = Net("backbone")
    groups = segmentation_groups(net, net, None)
    assert options(groups) == [{"weight_decay": 0.0}, {}]
    assert all(p.ndim < 2 for p in groups[0]["params"])
    assert all(p.ndim > 1 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


@pytest.mark.parametrize("name", ["backbone", "encoder"])
def test_the_head_has_its_own_rate(name):
    net = Net(name)
    net.head[0].bias.requires_grad_(False)
    groups = segmentation_groups(net, net, 0.1)
    rates = {id(p): group.get("lr") for group in groups for p in group["params"]}
    assert {id(p) for p in net.parameters() if p.requires_grad} == set(rates)
    assert rates[id(net.head[0].weight)] == 0.1
    decayed = {id(p) for group in groups for p in group["params"] if group.get("weight_decay") != 0}
    assert decayed == {id(p) for p in net.parameters() if p.requires_grad and p.ndim > 1}
    assert {rates[id(p)] for p in getattr(net, name).parameters()} == {None}


def test_a_network_without_backbone():
    with pytest.raises(ValueError, match=r"head_lr=0.1 needs a network .* which Conv2d has not"):
        segmentation_groups(nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), 0.1)


def test_nothing_is_trained():
    assert segmentation_groups(nn.Conv2d(3, 2, 1).requires_grad_(False), nn.Identity(), None) == [{"params": []}]
    assert torch.optim.AdamW(segmentation_groups(nn.Conv2d(3, 2, 1), nn.Identity(), None)).param_groups
