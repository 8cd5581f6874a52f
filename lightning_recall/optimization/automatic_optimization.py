"""Optimizer, schedules and exact resuming for a module with automatic optimization."""

from collections.abc import Sequence
from typing import Any, Literal

from lightning_recall._lightning import LightningModule, LRSchedulerCallable, OptimizerCallable, attached_trainer
from lightning_recall.checks import check_integer
from lightning_recall.optimization import resuming, schedules
from lightning_recall.optimization.distributed_random_states import get_random_states, set_random_states
from lightning_recall.optimization.optimizer_settings import SHARED, OptimizerSettings
from lightning_recall.optimization.parameter_groups import ParameterGroup, build_optimizer, split_parameters


class AutomaticOptimization(LightningModule):
    """Builds optimizer and schedulers, and restores all random numbers when resuming; Lightning runs the steps.

    Clipping and accumulation are arguments of the Trainer. A training that resumes from a checkpoint between two
    epochs ends with the weights of an uninterrupted one, to the bit; in the middle of an epoch, if the loader is
    stateful. Different optimizer or scheduler settings raise an error. Hooks that are overridden must call `super()`.

    `lr` is set by `Tuner.lr_find`. It applies to parameter groups without their own rate; None uses the optimizer's.

    Args:
        optimizer: callable that builds the optimizer from `parameter_groups()`; None: AdamW with a rate of 1e-4.
        lr_scheduler: callable that builds a scheduler from the optimizer; or a list of such callables, whose schedulers
            all step at the same time; None: a constant learning rate. For `ReduceLROnPlateau` use
            `pytorch_lightning.cli.ReduceLROnPlateau`, which has a `monitor` argument.
        lr_interval: whether schedulers step after every "epoch" or optimizer "step"; always "step" for WarmupCosineLR.
        lr_frequency: step the scheduler every `lr_frequency` epochs or steps; at least 1.

    Raises:
        ValueError: for an `lr_frequency` below 1. The start of training raises for ReduceLROnPlateau with
            `lr_interval="step"`, for schedulers that end before the training or override the learning rates of
            parameter groups, and for optimizers that differ from those of the checkpoint.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | list[LRSchedulerCallable] | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        lr_frequency: int = 1,
    ) -> None:
        super().__init__()
        check_integer("lr_frequency", lr_frequency, 1)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.lr_frequency = lr_frequency
        self.lr: float | None = None  # set by Tuner.lr_find
        self.initial_settings: dict[str, Any] = {}  # of optimizers and schedulers
        self.resumed: resuming.SavedOptimization | None = None
        self.resumed_states: list[dict[str, Any]] | None = None

    def parameter_groups(self) -> list[ParameterGroup]:
        """Parameter groups of the optimizer; override it to give submodules their own learning rate."""
        return split_parameters(self)

    def configure_optimizers(self) -> Any:
        """Builds the optimizer and schedulers."""
        factories = self.lr_scheduler if isinstance(self.lr_scheduler, Sequence) else [self.lr_scheduler]
        optimizer, built = build_optimizer(self.parameter_groups(), self.optimizer, factories, self.lr)
        configs = [schedules.schedule_config(item, self.lr_interval, self.lr_frequency) for item in built]
        for config in configs:
            if hasattr(config["scheduler"], "monitor"):
                config["monitor"] = config["scheduler"].monitor
        return [optimizer], configs

    def setup(self, stage: str) -> None:
        """Resets state left over from a previously loaded checkpoint."""
        self.resumed, self.resumed_states = None, None

    def on_fit_start(self) -> None:
        """Compares the optimizers with those of the checkpoint, before Lightning restores it."""
        self.initial_settings = resuming.optimizer_and_scheduler_settings(self.trainer)
        if self.resumed is not None:
            resuming.check_settings(self.resumed.settings, self.trainer)
            resuming.check_parameters(self.resumed.optimizers, self.trainer)
            self.resumed = None

    def on_train_start(self) -> None:
        """Checks that schedulers fit the length of training; restores the RNG state when resuming."""
        accumulated = self.trainer.accumulate_grad_batches
        schedules.check_schedules(self.trainer, {SHARED: OptimizerSettings(accumulate_grad_batches=accumulated)})
        if self.resumed_states is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            set_random_states(self.resumed_states, rank, world_size, self.device)
            self.resumed_states = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the settings of the optimizers, and the RNG state of every process."""
        checkpoint["optimization_settings"] = self.initial_settings
        checkpoint["random_states"] = get_random_states(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what `on_fit_start` compares and `on_train_start` restores."""
        resuming.check_callbacks(checkpoint.get("callbacks"), attached_trainer(self))
        self.resumed = resuming.SavedOptimization.from_checkpoint(checkpoint)
        self.resumed_states = checkpoint.get("random_states")
