"""Baselines of an evaluation: raw pixels, the backbone's features, and the embedder before training."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_recall._lightning import LightningModule, Trainer
from lightning_recall.batch import evaluation_inputs, type_and_shape

PIXELS, PRETRAINED, UNTRAINED = "pixels", "pretrained", "untrained"
TITLES = {PIXELS: "raw pixels", PRETRAINED: "pretrained features", UNTRAINED: "before training"}
RANDOM_FEATURES = "backbone before training"


class Features(nn.Module):
    """Calls `features` of a module, so that `functional_call` can replace its weights."""

    def __init__(self, module: LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Any) -> Any:
        """Features (b, C) of inputs (b, ...)."""
        return self.module.features(inputs)  # type: ignore[operator]  # `has_features` has checked it


class Baselines:
    """Embeds images as raw pixels, as features of the initial backbone, and with the initial weights of a module.

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
        """Embeddings (b, D) of each baseline for a batch (inputs, labels); requires `remember`.

        Inputs (b, C) of a module with `features` are features already, and have no pixels.

        Raises:
            ValueError: if the inputs are not a tensor.
        """
        inputs = evaluation_inputs(batch)
        if not isinstance(inputs, Tensor):
            raise ValueError(
                f"baselines=True scores the pixels of images: inputs must be a tensor, got {type_and_shape(inputs)}."
            )
        embeddings = {}
        if not (has_features(pl_module) and inputs.ndim == 2):
            embeddings[PIXELS] = inputs.flatten(1).float()
        if has_features(pl_module):
            state = {f"module.{name}": value for name, value in self.initial_state.items()}
            embeddings[PRETRAINED] = features_of(trainer, Features(pl_module), inputs, state)
        if has_head(pl_module):
            with trainer.precision_plugin.forward_context():
                embeddings[UNTRAINED] = functional_call(pl_module, self.initial_state, (inputs,))
        return embeddings


def embed_before_training(
    trainer: Trainer, pl_module: LightningModule, batch: Any, embeddings: Tensor
) -> dict[str, Tensor]:
    """Embeddings (b, D) of each baseline while the module still has its initial weights.

    Args:
        trainer: the Trainer, in its sanity check.
        pl_module: the module.
        batch: (inputs, labels); of modules without `features`, anything.
        embeddings: (b, D), the module's embeddings of the batch.
    """
    baselines = {UNTRAINED: embeddings} if has_head(pl_module) else {}
    if has_features(pl_module):
        baselines = {PRETRAINED: features_of(trainer, Features(pl_module), evaluation_inputs(batch), {}), **baselines}
    return baselines


def has_features(pl_module: LightningModule) -> bool:
    """Whether a module returns the features of its backbone: a method `features`, of an embedder that has it too."""
    embedder = getattr(pl_module, "embedder", pl_module)
    return callable(getattr(pl_module, "features", None)) and callable(getattr(embedder, "features", None))


def has_head(pl_module: LightningModule) -> bool:
    """Whether the untrained embeddings differ from the features: not if the embedder has a `head` without layers."""
    embedder = getattr(pl_module, "embedder", pl_module)
    return not (has_features(pl_module) and isinstance(getattr(embedder, "head", None), nn.Identity))


def features_of(trainer: Trainer, features: Features, inputs: Any, state: dict[str, Tensor]) -> Tensor:
    """Features (b, C) of inputs, with the given weights; inputs (b, C) are features already."""
    if isinstance(inputs, Tensor) and inputs.ndim == 2:
        return inputs.float()
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        values: Tensor = functional_call(features, state, (inputs,)) if state else features(inputs)
    return values


def title_of(kind: str, pl_module: LightningModule) -> str:
    """Title of a baseline in tables; features of a backbone with random weights are not called pretrained."""
    if kind == PRETRAINED and not any(getattr(part, "is_pretrained", False) for part in pl_module.modules()):
        return RANDOM_FEATURES
    return TITLES[kind]
