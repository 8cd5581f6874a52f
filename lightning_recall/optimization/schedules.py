"""Steps learning-rate schedulers, and checks them before training starts."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_recall import _lightning
from lightning_recall._lightning import LRSchedulerConfig, ReduceLROnPlateau, Trainer, rank_zero_warn
from lightning_recall.optimization.optimizer_settings import SHARED, OptimizerSettings


def due_schedulers(trainer: Trainer, interval: str, count: int, optimizer: Any = None) -> list[Any]:
    """Schedulers to step after `count` intervals; without ReduceLROnPlateau, which needs a metric.

    Args:
        trainer: with the schedulers.
        interval: "step" or "epoch".
        count: steps or epochs so far.
        optimizer: whose schedulers; None: those of all optimizers.
    """
    return [
        config.scheduler
        for config in trainer.lr_scheduler_configs
        if config.interval == interval
        and count % config.frequency == 0
        and not isinstance(config.scheduler, ReduceLROnPlateau)
        and (optimizer is None or config.scheduler.optimizer is optimizer)
    ]


def due_plateaus(trainer: Trainer, metrics: dict[str, Tensor]) -> list[tuple[ReduceLROnPlateau, Tensor]]:
    """Each ReduceLROnPlateau to step at the end of the epoch, with its metric; after a validation for "val" metrics.

    Args:
        trainer: at the end of an epoch.
        metrics: all logged metrics, including those from before a resume.

    Raises:
        ValueError: for a metric that is not logged.
    """
    every = trainer.check_val_every_n_epoch
    epoch = trainer.current_epoch + 1
    validated = every is not None and epoch % every == 0
    due = []
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if not isinstance(scheduler, ReduceLROnPlateau) or epoch % config.frequency:
            continue
        logged = every is None and scheduler.monitor in trainer.callback_metrics
        if validated or logged or not scheduler.monitor.startswith("val"):
            if scheduler.monitor not in metrics:
                raise ValueError(
                    f"ReduceLROnPlateau monitors {scheduler.monitor!r}, but only {sorted(metrics)} are logged."
                )
            due.append((scheduler, metrics[scheduler.monitor]))
    return due


def check_schedules(trainer: Trainer, settings: dict[str, OptimizerSettings]) -> None:
    """Checks all schedulers.

    Args:
        trainer: about to train.
        settings: of each optimizer, by name in their order; of all, under the name `SHARED`.

    Raises:
        ValueError: for a scheduler that ends before the training, for ReduceLROnPlateau without a monitor or with the
            interval "step", and, with named optimizers, for a scheduler without an attribute `optimizer`.
    """
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            check_plateau(config)
        elif SHARED in settings:
            check_length(config, planned_steps(config, trainer, settings[SHARED]))
        else:
            of_scheduler = dict(zip(map(id, trainer.optimizers), settings.values(), strict=True))
            own = of_scheduler.get(id(getattr(config.scheduler, "optimizer", None)))
            if own is None:
                raise ValueError(
                    f"{type(config.scheduler).__name__} needs an attribute `optimizer`, one of the module's."
                )
            if config.interval == "epoch" or trainer.max_steps <= 0:  # max_steps counts the steps of all optimizers
                check_length(config, planned_steps(config, trainer, own))


def check_plateau(config: LRSchedulerConfig) -> None:
    """Raises ValueError unless a ReduceLROnPlateau has a monitor and steps by the epoch."""
    if config.interval == "step":
        raise ValueError('ReduceLROnPlateau steps after a validation: set lr_interval="epoch".')
    if not isinstance(config.scheduler, ReduceLROnPlateau):
        raise ValueError(
            f"torch's ReduceLROnPlateau has no `monitor` argument: use {_lightning.NAME}.cli.ReduceLROnPlateau."
        )


def planned_steps(config: LRSchedulerConfig, trainer: Trainer, settings: OptimizerSettings) -> float:
    """Number of steps that the training makes with a scheduler; infinity if its end is not known."""
    epochs: float = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    if config.interval == "epoch":
        return epochs // config.frequency if epochs < math.inf else math.inf
    batches = trainer.num_training_batches
    planned = math.inf if math.inf in (epochs, batches) else settings.num_steps(int(epochs), int(batches))
    if trainer.max_steps > 0:
        planned = min(planned, trainer.max_steps // len(trainer.optimizers))
    return planned // config.frequency if planned < math.inf else math.inf


def check_length(config: LRSchedulerConfig, planned: float) -> None:
    """Compares the scheduler's total_steps, such as OneCycleLR's, with the planned number of steps.

    Raises:
        ValueError: if training is longer than the schedule; warns if it is shorter.
    """
    total = getattr(config.scheduler, "total_steps", None)
    if not isinstance(total, int) or planned in (0, total, math.inf):
        return
    every = f"{config.frequency} " if config.frequency > 1 else ""
    mismatch = (
        f"{type(config.scheduler).__name__} ends after total_steps={total}, but training will step it "
        f"{planned:.0f} times, every {every}{config.interval}{'s' if every else ''}"
    )
    if planned > total:
        raise ValueError(f"{mismatch}: set total_steps to {planned:.0f}, or train for less.")
    rank_zero_warn(
        f"{mismatch}, so the learning rate will not reach its final value: set total_steps to {planned:.0f}."
    )
