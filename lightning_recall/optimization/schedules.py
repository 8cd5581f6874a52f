"""Learning-rate schedules that cannot work with a training are refused before it starts."""

import math

import torch

from lightning_recall._lightning import LRSchedulerConfig, ReduceLROnPlateau, Trainer, rank_zero_warn


def check_schedules(trainer: Trainer, accumulate_grad_batches: int) -> None:
    """Raises ValueError for schedulers that the training would step too often, or without what they need."""
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            check_plateau(config)
        else:
            check_length(config, trainer, accumulate_grad_batches)


def check_plateau(config: LRSchedulerConfig) -> None:
    """Raises ValueError unless a plateau scheduler names its monitor and waits for the end of an epoch."""
    if config.interval == "step":
        raise ValueError('ReduceLROnPlateau waits for a validation: set lr_interval="epoch".')
    if not isinstance(config.scheduler, ReduceLROnPlateau):
        raise ValueError(
            "torch's ReduceLROnPlateau does not tell what to monitor: use pytorch_lightning.cli.ReduceLROnPlateau."
        )


def check_length(config: LRSchedulerConfig, trainer: Trainer, accumulate_grad_batches: int) -> None:
    """Compares the training with a schedule that has an end, such as OneCycleLR's.

    Raises:
        ValueError: if the training is longer; a shorter one is warned of.
    """
    total = getattr(config.scheduler, "total_steps", None)
    planned: float = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    if config.interval == "step":
        batches = trainer.num_training_batches
        planned *= batches if batches == math.inf else -(-batches // accumulate_grad_batches)
        planned = min(planned, trainer.max_steps // len(trainer.optimizers)) if trainer.max_steps > 0 else planned
    planned = planned // config.frequency if planned < math.inf else 0
    if not isinstance(total, int) or planned in (0, total):
        return
    every = f"{config.frequency} " if config.frequency > 1 else ""
    mismatch = (
        f"{type(config.scheduler).__name__} ends after total_steps={total}, but the training steps it "
        f"{planned:.0f} times, every {every}{config.interval}{'s' if every else ''}"
    )
    if planned > total:
        raise ValueError(f"{mismatch}: set total_steps to {planned:.0f}, or train for less.")
    rank_zero_warn(f"{mismatch}, so that the learning rate will not come down: set total_steps to {planned:.0f}.")
