"""Baselines of an evaluation: raw pixels, and the weights before training."""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from lightning_recall._lightning import LightningModule, Trainer
from lightning_recall.batch import evaluation_inputs, type_and_shape

PIXELS, UNTRAINED = "pixels", "untrained"


class Baselines:
    """Embeds test images as raw pixels and with the initial weights of a module.

    Attributes:
        initial_state: parameters and buffers of the module, copied by the first call of `remember`.
        module: the module that they belong to.
    """

    def __init__(self) -> None:
        self.initial_state: dict[str, Tensor] = {}
        self.module: LightningModule | None = None

    def remember(self, pl_module: LightningModule) -> None:
        """Copies the weights of a module, unless they are copied already."""
        if self.module is not pl_module:
            state = (*pl_module.named_parameters(), *pl_module.named_buffers())
            self.initial_state = {name: value.detach().clone() for name, value in state}
            self.module = pl_module

    def to(self, device: torch.device) -> None:
        """Moves the copies to a device."""
        self.initial_state = {name: value.to(device) for name, value in self.initial_state.items()}

    def embed(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> dict[str, Tensor]:
        """Embeddings (b, D) of each baseline for a batch (inputs, labels).

        Raises:
            ValueError: if the inputs are not a tensor.
        """
        inputs = evaluation_inputs(batch)
        if not isinstance(inputs, Tensor):
            raise ValueError(
                f"baselines=True scores the pixels of images: inputs must be a tensor, got {type_and_shape(inputs)}."
            )
        with trainer.precision_plugin.forward_context():
            untrained = functional_call(pl_module, self.initial_state, (inputs,))
        return {PIXELS: inputs.flatten(1).float(), UNTRAINED: untrained}
