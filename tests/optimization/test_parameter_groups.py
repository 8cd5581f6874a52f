import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from lightning_recall.optimization.parameter_groups import build_optimizer, split_parameters


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)


def names(module, groups):
    """Names of the parameters in each group."""
    of_parameter = {id(p): name for name, p in module.named_parameters()}
    return [[of_parameter[id(p)] for p in group["params"]] for group in groups]


def test_each_part_has_a_group_after_the_remaining_parameters():
    module = Parts()
    groups = split_parameters(module, [(module.third, {"lr": 0.5}), (module.first, {"weight_decay": 0.0})])
    expected = [["second.weight", "second.bias"], ["third.weight", "third.bias"], ["first.weight", "first.bias"]]
    assert names(module, groups) == expected
    assert [{name: value for name, value in group.items() if name != "params"} for group in groups] == [
        {},
        {"lr": 0.5},
        {"weight_decay": 0.0},
    ]
    assert names(module, split_parameters(module)) == [[name for name, _ in module.named_parameters()]]


def test_only_trainable_parameters_are_in_a_group():
    module = Parts()
    module.first.requires_grad_(False)
    module.third.bias.requires_grad_(False)
    groups = split_parameters(module, [(module.first, {"lr": 0.1}), (module.third, {"lr": 0.2})])
    assert names(module, groups) == [["second.weight", "second.bias"], ["third.weight"]]
    assert groups[1]["lr"] == 0.2


def test_a_shared_parameter_belongs_to_the_first_part_that_contains_it():
    module = Parts()
    module.second.weight = module.first.weight
    groups = split_parameters(module, [(module.second, {}), (module.first, {})])
    assert names(module, groups) == [["third.weight", "third.bias"], ["first.weight", "second.bias"], ["first.bias"]]
    torch.optim.SGD(groups, lr=0.1)  # refuses parameters that are in two groups


def sgd(groups):
    return SGD(groups, lr=1.0)


def halved(optimizer):
    return StepLR(optimizer, 1, gamma=0.5)


def test_a_learning_rate_applies_to_groups_without_their_own():
    module = Parts()
    groups = split_parameters(module, [(module.first, {"lr": 0.5}), (module.third, {"weight_decay": 0.1})])
    optimizer, schedulers = build_optimizer(groups, sgd, [None, halved], 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5, 0.25]
    assert [type(scheduler) for scheduler in schedulers] == [StepLR]
    assert [group["lr"] for group in build_optimizer(groups, None, [], None)[0].param_groups] == [1e-4, 0.5, 1e-4]


def test_a_scheduler_that_overrides_learning_rates_is_refused():
    module = Parts()
    groups = split_parameters(module, [(module.first, {"lr": 0.5})])

    def cycle(max_lr):
        return [lambda optimizer: OneCycleLR(optimizer, max_lr, total_steps=9)]

    with pytest.raises(
        ValueError, match=r"OneCycleLR overrides the learning rates \[1.0, 0.5\] of the parameter group"
    ):
        build_optimizer(groups, sgd, cycle(1.0), None)
    build_optimizer(groups, sgd, cycle([1.0, 0.5]), None)
    with pytest.raises(ValueError, match=r"OneCycleLR overrides the learning rate, so lr=0.25 has no effect"):
        build_optimizer(groups, sgd, cycle([1.0, 0.5]), 0.25)
    build_optimizer(groups, sgd, [halved], 0.25)
