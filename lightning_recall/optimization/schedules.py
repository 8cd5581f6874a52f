"""Steps learning-rate schedulers, and checks them before training starts."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_recall import _lightning
from lightning_recall._lightning import (
    LRSchedulerConfig,
    ReduceLROnPlateau,
    Trainer,
    is_fast_dev_run,
    rank_zero_warn,
)
from lightning_recall.optimization.optimizer_settings import SHARED, OptimizerSettings
from lightning_recall.optimization.resuming import NEW_TRAINING_HINT
from lightning_recall.optimization.warmup_cosine import WarmupCosineLR


def schedule_config(scheduler: Any, interval: str, frequency: int) -> dict[str, Any]:
    """Lightning's dict of a scheduler and when it steps; WarmupCosineLR steps after optimizer steps."""
    interval = "step" if isinstance(scheduler, WarmupCosineLR) else interval
    return {"scheduler": scheduler, "interval": interval, "frequency": frequency}


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
    """Checks all schedulers; gives each WarmupCosineLR without `total_steps` the length of the training.

    Args:
        trainer: the Trainer, after configure_optimizers.
        settings: optimizer name -> settings, in optimizer order; or {SHARED: settings of all optimizers}.

    Raises:
        ValueError: for a scheduler that ends before training does, for ReduceLROnPlateau without a monitor or with the
            interval "step", for WarmupCosineLR with the interval "epoch" or an unknown length, and, with named
            optimizers, for a scheduler without an attribute `optimizer`.
    """
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            check_plateau(config)
        elif SHARED in settings:
            fill_or_check_length(config, planned_steps(config, trainer, settings[SHARED]), trainer)
        else:
            settings_by_optimizer = dict(zip(map(id, trainer.optimizers), settings.values(), strict=True))
            scheduler_settings = settings_by_optimizer.get(id(getattr(config.scheduler, "optimizer", None)))
            if scheduler_settings is None:
                raise ValueError(
                    f"{type(config.scheduler).__name__} needs an attribute `optimizer` that is one of the "
                    "module's optimizers."
                )
            # max_steps counts the steps of all optimizers
            is_known = config.interval == "epoch" or trainer.max_steps <= 0
            planned = planned_steps(config, trainer, scheduler_settings) if is_known else math.inf
            fill_or_check_length(config, planned, trainer)


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


def fill_or_check_length(config: LRSchedulerConfig, planned: float, trainer: Trainer) -> None:
    """Sets the length of a WarmupCosineLR without `total_steps`; checks that of other schedulers.

    Args:
        config: a scheduler.
        planned: number of times that training will step it; infinity if not known.
        trainer: the Trainer, after it has restored the checkpoint.

    Raises:
        ValueError: for WarmupCosineLR with the interval "epoch", an unknown length, or a length that differs from that
            of the checkpoint; for another scheduler that ends before training does.
    """
    scheduler = config.scheduler
    if isinstance(scheduler, WarmupCosineLR) and config.interval == "epoch":
        raise ValueError('WarmupCosineLR steps after every optimizer step: set its interval to "step".')
    if not isinstance(scheduler, WarmupCosineLR) or scheduler.given_total_steps is not None:
        check_length(config, planned)
        return
    if planned == math.inf:
        raise ValueError(
            "WarmupCosineLR needs the number of steps of the training, which is not known: give it total_steps, or set "
            "max_epochs of the Trainer and use a loader with a length."
        )
    if scheduler.total_steps is None:
        shortest = math.floor(scheduler.warmup) + 1 if is_fast_dev_run(trainer) else 1
        scheduler.set_total_steps(max(int(planned), shortest))
    elif scheduler.total_steps != planned:
        raise ValueError(
            f"WarmupCosineLR was set up for {scheduler.total_steps} steps in the checkpoint, but this training has "
            f"{planned:.0f}: resume with the same max_epochs and data. {NEW_TRAINING_HINT}"
        )


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
