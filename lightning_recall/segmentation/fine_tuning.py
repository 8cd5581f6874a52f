"""Parameter groups of a segmentation module."""

from torch import nn

from lightning_recall.optimization.fine_tuning_groups import backbone_with_head, decay_groups
from lightning_recall.optimization.parameter_groups import ParameterGroup


def segmentation_groups(module: nn.Module, network: nn.Module, head_lr: float | None) -> list[ParameterGroup]:
    """Parameter groups of a module: with and without weight decay, of the backbone and of everything else.

    Parameters with at most one dimension, which are norms and biases, have no weight decay.

    Args:
        module: its trainable parameters are grouped.
        network: the part of it whose attribute `backbone` (torchvision) or `encoder` (segmentation-models-pytorch) has
            the learning rate of the optimizer.
        head_lr: learning rate of all other parameters; None: that of the optimizer.

    Raises:
        ValueError: for `head_lr` and a network without such an attribute.
    """
    if head_lr is None:
        return decay_groups(trainable(module)) or [{"params": []}]
    backbone = backbone_with_head(network, ("backbone", "encoder"), head_lr)
    inner = {id(p) for p in backbone.parameters()}
    head = [(name, p) for name, p in trainable(module) if id(p) not in inner]
    return [*decay_groups(trainable(backbone)), *decay_groups(head, lr=head_lr)]


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and trainable parameters of a module."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]
