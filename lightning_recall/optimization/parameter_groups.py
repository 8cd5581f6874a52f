"""Parameter groups of an optimizer: submodules with their own learning rate or weight decay."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lightning_recall._lightning import LRSchedulerCallable, OptimizerCallable

ParameterGroup = dict[str, Any]
"""{"params": list of parameters, and options of the optimizer such as "lr"}; "lr_scale" multiplies the learning rate"""


def split_parameters(module: nn.Module, parts: Sequence[tuple[nn.Module, dict[str, Any]]] = ()) -> list[ParameterGroup]:
    """Parameter groups of a module: one for the parameters outside all parts, then one for each part.

    Only trainable parameters are included, each of them once: a parameter that two modules share belongs to the first
    part that contains it. Parts without trainable parameters have no group.

    Args:
        module: its parameters are optimized.
        parts: submodules, each with the options of its group, such as {"lr": 0.1}.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    >>> rest, last = split_parameters(net, [(net[1], {"lr": 0.1})])
    >>> len(rest["params"]), len(last["params"]), last["lr"]
    (2, 2, 0.1)
    """
    assigned: set[int] = set()
    groups: list[ParameterGroup] = []
    for part, options in parts:
        parameters = [p for p in part.parameters() if p.requires_grad and id(p) not in assigned]
        assigned |= {id(p) for p in parameters}
        if parameters:
            groups.append({"params": parameters, **options})
    remaining = [p for p in module.parameters() if p.requires_grad and id(p) not in assigned]
    return [{"params": remaining}, *groups]


def build_optimizer(
    groups: list[ParameterGroup],
    optimizer: OptimizerCallable | None,
    schedulers: Sequence[LRSchedulerCallable | None],
    lr: float | None,
) -> tuple[torch.optim.Optimizer, list[Any]]:
    """An optimizer and its schedulers.

    Args:
        groups: parameter groups. The learning rate of a group with "lr_scale" is multiplied by it, because optimizers
            ignore this option.
        optimizer: builds the optimizer from the groups; None: AdamW with a learning rate of 1e-4.
        schedulers: each builds a scheduler from the optimizer; None is skipped.
        lr: learning rate of all groups without their own; None: the optimizer's.

    Raises:
        ValueError: if a scheduler overrides the learning rates of the groups, or `lr`.
    """
    default = {} if lr is None else {"lr": lr}
    copies = [{**default, **group} for group in groups]  # an optimizer adds its options to the groups passed to it
    built = optimizer(copies) if optimizer else torch.optim.AdamW(copies, lr=1e-4)
    for group in built.param_groups:
        group["lr"] = group["lr"] * group.pop("lr_scale", 1.0)
    before = [float(group["lr"]) for group in built.param_groups]
    scheduled = [factory(built) for factory in schedulers if factory is not None]
    after = [float(group["lr"]) for group in built.param_groups]
    if len(set(after)) == 1 < len(set(before)):
        rates = str(before) if len(before) <= 4 else f"from {min(before):.3g} to {max(before):.3g}"
        values = f"one value per group, such as max_lr: {before}, or " if len(before) <= 4 else ""
        raise ValueError(
            f"{type(scheduled[-1]).__name__} overrides the learning rates {rates} of the parameter groups with a "
            f"single one: pass {values}a scheduler that scales them, such as WarmupCosineLR."
        )
    for given, group in zip(groups, built.param_groups, strict=True):
        expected = None if lr is None or "lr" in given else lr * given.get("lr_scale", 1.0)
        if expected is not None and group.get("initial_lr", expected) != expected:
            raise ValueError(
                f"{type(scheduled[-1]).__name__} overrides the learning rate, so lr={lr:.3g} has no effect: pass it to "
                "the scheduler, such as max_lr, and set lr to None."
            )
    return built, scheduled
