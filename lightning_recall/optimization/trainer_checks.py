"""Checks of a Trainer's settings that manual optimization does not support."""

import torch

from lightning_recall._lightning import (
    GradientAccumulationScheduler,
    LearningRateFinder,
    Trainer,
    callbacks_of,
    saves_by_time,
)


def check_trainer_settings(trainer: Trainer, accumulate_grad_batches: int) -> None:
    """Raises ValueError for settings that only work in automatic optimization.

    The message names the module's argument to use instead.
    """
    for name, unset in (("gradient_clip_val", 0), ("gradient_clip_algorithm", None), ("accumulate_grad_batches", 1)):
        value = getattr(trainer, name)
        if value not in (None, unset):
            value = getattr(value, "value", value)  # Lightning stores the algorithm as an enum
            raise ValueError(
                f"The Trainer's {name}={value!r} has no effect in manual optimization: give {name}={value!r} to the "
                f"module instead of the Trainer; on the command line: --model.{name} {value}."
            )
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler):
            raise ValueError(
                "GradientAccumulationScheduler has no effect in manual optimization: give accumulate_grad_batches to "
                "the module, or change it with AttributeScheduler."
            )
        if isinstance(callback, LearningRateFinder) and accumulate_grad_batches > 1:
            raise ValueError(
                "LearningRateFinder compares the losses of single batches: set the module's accumulate_grad_batches to "
                f"1 while it runs, got {accumulate_grad_batches}."
            )


def check_optimizer_classes(trainer: Trainer) -> None:
    """Raises ValueError for LBFGS."""
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        raise ValueError(
            "LBFGS needs several loss evaluations per step, which is not supported: use another optimizer."
        )


def check_checkpoint_times(trainer: Trainer) -> None:
    """Raises ValueError for checkpoints that Lightning saves in automatic optimization only."""
    if any(map(saves_by_time, trainer.checkpoint_callbacks)):
        raise ValueError(
            "ModelCheckpoint(train_time_interval=...) saves nothing in manual optimization: give every_n_train_steps "
            "or every_n_epochs."
        )
