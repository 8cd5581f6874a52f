"""Parameter groups of an adaptation module."""

from typing import Any

from torch import nn

from lightning_recall.optimization.fine_tuning_groups import backbone_with_head
from lightning_recall.optimization.parameter_groups import ParameterGroup, split_parameters


def adaptation_groups(module: Any, head_lr: float | None) -> list[ParameterGroup]:
    """Parameter groups of a module: its backbone, and everything else, which has the learning rate `head_lr`.

    All parameters have the weight decay of the optimizer, as in tllib, whose DANN trains the backbone with a tenth of
    the rate of the new layers.

    Args:
        module: its trainable parameters are grouped. The backbone is `encoder.backbone`; if that has a `backbone` too,
            the inner one.
        head_lr: learning rate of everything outside the backbone; None: one group with that of the optimizer.

    Raises:
        ValueError: for `head_lr` and an encoder without backbone.
    """
    if head_lr is None:
        return split_parameters(module)
    backbone = backbone_with_head(module.encoder, ("backbone",), head_lr)
    while isinstance(getattr(backbone, "backbone", None), nn.Module):
        backbone = backbone_with_head(backbone, ("backbone",), head_lr)
    rest, *inner = split_parameters(module, [(backbone, {})])
    return [*inner, {**rest, "lr": head_lr}]
