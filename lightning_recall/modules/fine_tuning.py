"""Parameter groups of a retrieval module."""

from typing import Any

from torch import nn

from lightning_recall.modules.frozen_backbone import find_backbone
from lightning_recall.optimization.fine_tuning_groups import backbone_groups, decay_groups
from lightning_recall.optimization.parameter_groups import ParameterGroup, split_parameters


def retrieval_groups(module: Any, is_old_checkpoint: bool) -> list[ParameterGroup]:
    """Parameter groups of a retrieval module: backbone, the rest of the embedder, loss, the rest of the module.

    They are split by weight decay if the backbone is a timm model, or `head_lr` or `layer_decay` is set. Otherwise, and
    for an old checkpoint, there is one group, and one of the loss if `loss_lr` is set.

    Args:
        module: its `embedder`, `loss`, `head_lr`, `loss_lr` and `layer_decay` are used.
        is_old_checkpoint: whether training resumes from a checkpoint of a release without groups for fine-tuning.

    Raises:
        ValueError: for `head_lr` or `layer_decay` with an embedder without backbone.
    """
    backbone = find_backbone(module)
    is_set = module.head_lr is not None or module.layer_decay != 1
    if is_set and backbone is None:
        raise ValueError(
            f"head_lr and layer_decay need an embedder with an attribute `backbone`, which "
            f"{type(module.embedder).__name__} has not: set head_lr to null (None in Python) and layer_decay to 1.0."
        )
    if not is_set and (is_old_checkpoint or not hasattr(backbone, "group_matcher")):
        return split_parameters(module, [] if module.loss_lr is None else [(module.loss, {"lr": module.loss_lr})])
    groups = [] if backbone is None else backbone_groups(backbone, module.layer_decay)
    assigned = {id(p) for group in groups for p in group["params"]}
    parts: list[tuple[nn.Module, float | None]] = [
        (module.loss, module.loss_lr),
        (module.embedder, module.head_lr),
        (module, None),
    ]
    for part, rate in parts:
        parameters = [(name, p) for name, p in part.named_parameters() if p.requires_grad and id(p) not in assigned]
        assigned |= {id(p) for _, p in parameters}
        groups += decay_groups(parameters, **({} if rate is None else {"lr": rate}))
    return groups or [{"params": []}]
