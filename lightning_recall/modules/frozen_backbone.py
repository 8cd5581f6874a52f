"""A phase of training in which the backbone is frozen."""

import sys
from typing import Any

from torch import nn

from lightning_recall._lightning import (
    BaseFinetuning,
    Trainer,
    callbacks_of,
    is_fast_dev_run,
    rank_zero_info,
    uses_static_graph,
)
from lightning_recall.checks import check_integer

ALL_CHUNKS = sys.maxsize
"""`keep_chunks` of a frozen phase: a chunk without a graph of the backbone needs little memory"""


def find_part(embedder: Any, name: str) -> nn.Module | None:
    """The submodule `name` of an embedder, or of the embedder that it wraps as `embedder`; None if there is none."""
    while isinstance(embedder, nn.Module):
        part = getattr(embedder, name, None)
        if isinstance(part, nn.Module):
            return part
        embedder = getattr(embedder, "embedder", None)
    return None


def find_backbone(embedder: Any) -> nn.Module | None:
    """The backbone of an embedder or of a retrieval module; None if there is none."""
    return find_part(embedder, "backbone")


class FrozenBackbone:
    """Freezes an embedder's backbone before an epoch.

    Frozen parameters need no gradient, and the backbone is in evaluation mode: BatchNorm statistics stay unchanged,
    dropout and drop path are off. If the embedder has a `head`, everything but the head is frozen, which includes the
    pooling. The optimizer has the parameters from the start, and skips them while they have no gradient.

    Args:
        unfreeze_epoch: first epoch, counted from 0, in which the backbone is trained; None: never.

    Raises:
        ValueError: for an epoch that is not a whole number of at least 0.
    """

    def __init__(self, unfreeze_epoch: int | None) -> None:
        if unfreeze_epoch is not None:
            check_integer("unfreeze_epoch", unfreeze_epoch, 0)
        self.unfreeze_epoch = unfreeze_epoch
        self.frozen: list[nn.Parameter] = []
        self.modes: dict[nn.Module, bool] = {}  # module of the backbone -> whether it is trained in train mode

    def is_frozen(self, epoch: int) -> bool:
        """Whether the backbone is frozen in an epoch."""
        return self.unfreeze_epoch is None or epoch < self.unfreeze_epoch

    def setup(self, module: Any) -> None:
        """Checks the setting; freezes a backbone that stays frozen before the optimizer is built.

        Raises:
            ValueError: for an epoch beyond the training, an embedder without backbone, BackboneFinetuning,
                `static_graph`, and if nothing would be trained.
        """
        self.release()
        if self.unfreeze_epoch == 0:
            return
        check_frozen_phase(module.trainer, self.unfreeze_epoch)
        if find_backbone(module) is None:
            raise ValueError(
                f"unfreeze_epoch={self.unfreeze_epoch} needs an embedder with an attribute `backbone`, which "
                f"{type(module.embedder).__name__} has not: set unfreeze_epoch to 0."
            )
        self.freeze(module.embedder, module.backbone)
        if not any(p.requires_grad for p in module.parameters()):
            self.release()
            raise ValueError(
                "Nothing is trained while the backbone is frozen: give the embedder a head, such as embedding_dim 512, "
                "or set unfreeze_epoch to 0."
            )
        if self.unfreeze_epoch is not None:
            self.release()  # the optimizer is built with all parameters

    def update(self, module: Any) -> bool:
        """Freezes or unfreezes the backbone of a module for a training step; returns whether it is frozen."""
        if self.is_frozen(module.current_epoch):
            self.freeze(module.embedder, module.backbone)
            return True
        if self.frozen:
            rank_zero_info(f"Epoch {module.current_epoch}: the backbone is trained from now on.")
        self.release()
        return False

    def freeze(self, embedder: nn.Module, backbone: nn.Module) -> None:
        """Freezes the parameters and puts the backbone into evaluation mode; may be called again."""
        head = find_part(embedder, "head")
        trained = set() if head is None else set(head.parameters())
        parameters = (backbone if head is None else embedder).parameters()
        newly = [p for p in parameters if p.requires_grad and p not in trained]
        for parameter in newly:
            parameter.requires_grad_(False)
        self.frozen += newly
        if any(module.training for module in backbone.modules()):
            self.modes = {module: module.training for module in backbone.modules()}
            backbone.eval()

    def release(self) -> None:
        """Unfreezes what was frozen."""
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        for module, mode in self.modes.items():
            module.training = mode
        self.frozen, self.modes = [], {}


def check_frozen_phase(trainer: Trainer, unfreeze_epoch: int | None) -> None:
    """Raises ValueError for an epoch beyond the training, BackboneFinetuning and `static_graph`."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, BaseFinetuning):
            raise ValueError(
                f"{type(callback).__name__} and unfreeze_epoch={unfreeze_epoch} both freeze the backbone: remove the "
                "callback, or set unfreeze_epoch to 0."
            )
    if unfreeze_epoch is not None and uses_static_graph(trainer.strategy):
        raise ValueError(
            "unfreeze_epoch changes which parameters are trained, which static_graph=True does not allow: leave "
            "static_graph out, or set unfreeze_epoch to 0."
        )
    epochs = trainer.max_epochs
    if unfreeze_epoch is None or epochs is None or epochs < 0 or is_fast_dev_run(trainer):
        return
    if unfreeze_epoch >= epochs:
        raise ValueError(
            f"unfreeze_epoch={unfreeze_epoch} is beyond the training of {epochs} epochs, counted from 0: set it below "
            f"{epochs}, or to null (None in Python) to keep the backbone frozen."
        )
