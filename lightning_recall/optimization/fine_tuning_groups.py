"""Parameter groups for fine-tuning: layer-wise learning rates, and parameters without weight decay."""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import timm.optim
from torch import nn

from lightning_recall.optimization.parameter_groups import ParameterGroup

timm_optim: Any = timm.optim


def check_layer_decay(layer_decay: float) -> None:
    """Raises ValueError for a `layer_decay` outside (0, 1]."""
    if not 0 < layer_decay <= 1:
        raise ValueError(
            "layer_decay must be above 0 and at most 1, where 1 gives all layers the same learning rate, got "
            f"{layer_decay}."
        )


def backbone_groups(backbone: nn.Module, layer_decay: float = 1.0) -> list[ParameterGroup]:
    """Parameter groups of a backbone, by timm's functions.

    Norms, biases and the parameters that the backbone's `no_weight_decay()` names, such as positional embeddings and
    class tokens, have no weight decay. The others have that of the optimizer.

    Args:
        backbone: a timm model, or any module; its trainable parameters are grouped.
        layer_decay: the learning rate of each layer is that of the layer above it, times this factor; 1: the same rate
            for all. timm's `group_matcher` of the model says what a layer is.

    Returns:
        Groups with "params", "weight_decay" if it is 0, and "lr_scale", the factor of the learning rate, if it is not
        1. `build_optimizer` multiplies the rate of the optimizer by it.

    Raises:
        ValueError: for a `layer_decay` outside (0, 1], or below 1 for a backbone whose layers are not known.
    """
    check_layer_decay(layer_decay)
    without_decay = set(getattr(backbone, "no_weight_decay", set)())
    if layer_decay == 1:
        return optimizer_decay(timm_optim.param_groups_weight_decay(backbone, 1.0, no_weight_decay_list=without_decay))
    groups: list[ParameterGroup] = []
    if hasattr(backbone, "group_matcher") or (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier"):
        groups = timm_optim.param_groups_layer_decay(
            backbone, 1.0, no_weight_decay_list=without_decay, layer_decay=layer_decay
        )
    if len({group["lr_scale"] for group in groups}) < 2 and any(p.requires_grad for p in backbone.parameters()):
        raise ValueError(
            f"layer_decay={layer_decay} needs a backbone whose layers are known, by a method group_matcher() as timm's "
            f"models have it; {type(backbone).__name__} has none: set layer_decay to 1.0."
        )
    return optimizer_decay(groups)


def backbone_with_head(network: nn.Module, names: Sequence[str], head_lr: float) -> nn.Module:
    """The part of a network that does not have the learning rate `head_lr`.

    Args:
        network: a network with a backbone.
        names: names of the attribute that is the backbone; the first that exists is used.
        head_lr: learning rate of all other parts, for the message.

    Raises:
        ValueError: if there is no such attribute.
    """
    backbone = next((getattr(network, name) for name in names if hasattr(network, name)), None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f"head_lr={head_lr:g} needs a network with an attribute {' or '.join(f'`{name}`' for name in names)}, "
            f"which {type(network).__name__} has not: set head_lr to null (None in Python)."
        )
    return backbone


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]], **options: Any) -> list[ParameterGroup]:
    """Groups of named parameters: those with at most one dimension have no weight decay.

    These are norms, biases, GeM's exponent, logit scales and temperatures.

    Args:
        parameters: (name, parameter).
        options: of all groups, such as lr.
    """
    named = list(parameters)
    holder: Any = SimpleNamespace(named_parameters=lambda: named)
    return [{**group, **options} for group in optimizer_decay(timm_optim.param_groups_weight_decay(holder, 1.0))]


def optimizer_decay(groups: list[dict[str, Any]]) -> list[ParameterGroup]:
    """Leaves the weight decay of timm's groups to the optimizer, unless it is 0; drops a learning-rate scale of 1."""
    kept = []
    for group in (group for group in groups if group["params"]):  # older releases of timm return empty groups
        options = {"params": group["params"]}
        if group["weight_decay"] == 0:
            options["weight_decay"] = 0.0
        if group.get("lr_scale", 1.0) != 1:
            options["lr_scale"] = group["lr_scale"]
        kept.append(options)
    return kept
