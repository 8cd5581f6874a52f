"""Makes Lightning's WeightAveraging and EMAWeightAveraging exact for a module with a loss that has a state.

Lightning averages all buffers, also counters, labels and the memory of a loss, whose averages are meaningless. Its
result depends on the order of the callbacks. A test of a checkpoint after `fit` uses the current weights instead of the
averaged ones.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_recall._lightning import LightningModule, Trainer, averaged_module, averages_weights, callbacks_of

CURRENT = "current_model_state"  # key that WeightAveraging adds to checkpoints
NOT_AVERAGED = ("loss.", "aux_loss.", "mixup.")  # submodules with a state of their own


def put_weight_averaging_first(trainer: Trainer) -> None:
    """Moves WeightAveraging before the other callbacks.

    A callback that saves a checkpoint after a batch then saves the average with this batch, and a callback that uses
    the network at the start of a validation uses the averaged weights.
    """
    callbacks_of(trainer).sort(key=lambda callback: not averages_weights(callback))


def is_averaged(name: str, value: Any) -> bool:
    """Whether an entry of a module's state_dict is averaged: floating point, and not part of the loss or of mixup.

    Parameters of the loss are averaged by Lightning; see `copy_current_state`, which only takes buffers.
    """
    is_part = name.startswith(NOT_AVERAGED)
    return isinstance(value, Tensor) and value.is_floating_point() and not is_part


def unaveraged_names(module: LightningModule) -> list[str]:
    """Names of the buffers and extra states that keep their current value instead of an average."""
    parameters = {name for name, _ in module.named_parameters()}
    state = module.state_dict()
    return [name for name in state if name not in parameters and not is_averaged(name, state[name])]


def copy_current_state(trainer: Trainer, module: LightningModule) -> None:
    """Copies the buffers that are not averaged to the averaged module."""
    averaged = averaged_module(trainer)
    if averaged is None:
        return
    targets = dict(averaged.named_buffers())
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if not is_averaged(name, buffer):
                targets[name].copy_(buffer)


def save_averaged_weights(checkpoint: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
    """Puts the buffers and extra states that are not averaged beside the averaged weights of a checkpoint.

    For a checkpoint with `save_weights_only`, in which Lightning saves the current weights, also the averaged ones.
    """
    averaged = averaged_module(trainer)
    is_weights_only = "optimizer_states" not in checkpoint
    if CURRENT not in checkpoint and not (is_weights_only and averaged is not None):
        return
    current = checkpoint.get(CURRENT, checkpoint["state_dict"])
    if CURRENT not in checkpoint and averaged is not None:
        checkpoint["state_dict"] = averaged.state_dict()
    for name in unaveraged_names(module):
        checkpoint["state_dict"][name] = current[name]


def check_weight_averaging(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Makes a test after a training use the averaged weights of the checkpoint, as a new Trainer does.

    Raises:
        ValueError: if training resumes from a checkpoint of WeightAveraging without this callback, which would start
            from the averaged weights.
    """
    if CURRENT not in checkpoint:
        return
    if trainer.state.fn != "fit":
        checkpoint[CURRENT] = checkpoint["state_dict"]
    elif not any(map(averages_weights, callbacks_of(trainer))):
        raise ValueError(
            "The checkpoint was trained with EMAWeightAveraging or WeightAveraging, but this run has neither: resume "
            "with the same callback, or start a new training from the averaged weights: --weights FILE in the command, "
            "or module.load_state_dict(..., strict=False)."
        )
