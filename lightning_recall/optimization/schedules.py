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
        trainer: the Trainer, after configure_optimizers.
        interval: "step" or "epoch".
        count: steps or epochs so far.
        optimizer: return only its schedulers; None: all schedulers.
    """
    return [
        config.scheduler
        for config in trainer.lr_scheduler_configs
        if config.interval == interval
        and count % config.frequency == 0
        and not isinstance(config.scheduler, ReduceLROnPlateau)
        and (optimizer is None or config.scheduler.optimizer is optimizer)
    ]


def due_plateau_schedulers(trainer: Trainer, metrics: dict[str, Tensor]) -> list[tuple[ReduceLROnPlateau, Tensor]]:
    """ReduceLROnPlateau schedulers to step now, with their metrics.

    Schedulers that monitor a "val" metric step only after a validation.

    Args:
        trainer: the Trainer; call this at the end of an epoch.
        metrics: all logged metrics, including those from before a resume.

    Raises:
        ValueError: for a metric that is not logged.
    """
    val_interval = trainer.check_val_every_n_epoch
    epoch = trainer.current_epoch + 1
    validated = val_interval is not None and epoch % val_interval == 0
    due = []
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if not isinstance(scheduler, ReduceLROnPlateau) or epoch % config.frequency:
            continue
        logged = val_interval is None and scheduler.monitor in trainer.callback_metrics
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
        trainer: the Trainer, after configure_optimizers.
        settings: optimizer name -> settings, in optimizer order; or {SHARED: settings of all optimizers}.

    Raises:
        ValueError: for a scheduler that ends before training does, for ReduceLROnPlateau without a monitor or with the
            interval "step", and, with named optimizers, for a scheduler without an attribute `optimizer`.
    """
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            check_plateau(config)
        elif SHARED in settings:
            check_length(config, planned_steps(config, trainer, settings[SHARED]))
        else:
            settings_by_optimizer = dict(zip(map(id, trainer.optimizers), settings.values(), strict=True))
            scheduler_settings = settings_by_optimizer.get(id(getattr(config.scheduler, "optimizer", None)))
            if scheduler_settings is None:
                raise ValueError(
                    f"{type(config.scheduler).__name__} needs an attribute `optimizer` that is one of the "
                    "module's optimizers."
                )
            if config.interval == "epoch" or trainer.max_steps <= 0:  # max_steps counts the steps of all optimizers
                check_length(config, planned_steps(config, trainer, scheduler_settings))


def check_plateau(config: LRSchedulerConfig) -> None:
    """Raises ValueError unless a ReduceLROnPlateau has a monitor and steps by the epoch."""
    if config.interval == "step":
        raise ValueError('ReduceLROnPlateau steps after a validation: set lr_interval="epoch".')
    if not isinstance(config.scheduler, ReduceLROnPlateau):
        raise ValueError(
            f"torch's ReduceLROnPlateau has no `monitor` argument: use {_lightning.PACKAGE}.cli.ReduceLROnPlateau."
        )


def planned_steps(config: LRSchedulerConfig, trainer: Trainer, settings: OptimizerSettings) -> float:
    """Number of times that training will step a scheduler; infinity if not known."""
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
    interval = config.interval if config.frequency == 1 else f"{config.frequency} {config.interval}s"
    mismatch = (
        f"{type(config.scheduler).__name__} ends after total_steps={total}, but training will step it "
        f"{planned:.0f} times, every {interval}"
    )
    if planned > total:
        raise ValueError(f"{mismatch}: set total_steps to {planned:.0f}, or train for less.")
    rank_zero_warn(
        f"{mismatch}, so the learning rate will not reach its final value: set total_steps to {planned:.0f}."
    )
