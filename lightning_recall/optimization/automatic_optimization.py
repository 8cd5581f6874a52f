"""Optimizer, schedules and exact resuming for a module with automatic optimization."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from lightning_recall._lightning import (
    Callback,
    LightningModule,
    LRSchedulerCallable,
    OptimizerCallable,
    attached_trainer,
)
from lightning_recall.checks import check_integer
from lightning_recall.optimization import resuming, schedules, weight_averaging
from lightning_recall.optimization.distributed_random_states import get_random_states, set_random_states
from lightning_recall.optimization.optimizer_settings import SHARED, OptimizerSettings
from lightning_recall.optimization.parameter_groups import ParameterGroup, build_optimizer, split_parameters


class AutomaticOptimization(LightningModule):
    """Builds optimizer and schedulers, and restores all random numbers when resuming; Lightning runs the steps.

    Clipping and accumulation are arguments of the Trainer. With a stateful loader, as those of this package, a training
    that resumes from any checkpoint ends with the weights of an uninterrupted one, to the bit. With a plain DataLoader
    that shuffles, it does if the checkpoint was saved after a validation at the end of an epoch. Different optimizer or
    scheduler settings raise an error. Hooks that are overridden must call `super()`.

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

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Puts WeightAveraging first."""
        weight_averaging.put_weight_averaging_first(self.trainer)
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Resets state left over from a previously loaded checkpoint."""
        self.resumed, self.resumed_states = None, None

    def on_fit_start(self) -> None:
        """Compares the optimizers with those of the checkpoint, before Lightning restores it."""
        self.initial_settings = resuming.compare_with_checkpoint(self.trainer, self.resumed, self.settings())

    def settings(self) -> dict[str, OptimizerSettings]:
        """How many batches the Trainer accumulates."""
        return {SHARED: OptimizerSettings(accumulate_grad_batches=self.trainer.accumulate_grad_batches)}

    def on_train_start(self) -> None:
        """Checks that schedulers fit the length of training; restores accumulated gradients and the RNG state."""
        schedules.check_schedules(self.trainer, self.settings())
        if self.resumed is not None:
            self.resumed.restore_gradients(self)
            self.resumed = None
        if self.resumed_states is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            set_random_states(self.resumed_states, rank, world_size, self.device)
            self.resumed_states = None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Gives averaged weights, if there are any, the current buffers of the loss."""
        weight_averaging.copy_current_state(self.trainer, self)

    def on_train_epoch_end(self) -> None:
        """Same as `on_train_batch_end`."""
        weight_averaging.copy_current_state(self.trainer, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the settings of the optimizers, accumulated gradients, and the RNG state of every process."""
        checkpoint["optimization_settings"] = self.initial_settings
        accumulated = self.accumulated_gradients()
        if accumulated:
            batches = {SHARED: self.trainer.accumulate_grad_batches}
            checkpoint["accumulated"] = {"gradients": accumulated, "accumulate_grad_batches": batches}
        checkpoint["random_states"] = get_random_states(self.device)
        weight_averaging.save_averaged_weights(checkpoint, self.trainer, self)

    def accumulated_gradients(self) -> dict[str, Tensor]:
        """Gradients by name of the parameter, between two steps of the optimizer; the mean over processes."""
        trainer = self.trainer
        is_between = trainer.training and not trainer.is_last_batch
        if not (is_between and (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches):
            return {}
        gradients = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
        if trainer.world_size == 1:
            return gradients
        return {name: trainer.strategy.reduce(g.clone(), reduce_op="mean") for name, g in gradients.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what `on_fit_start` compares and `on_train_start` restores."""
        if (trainer := attached_trainer(self)) is not None:
            resuming.check_callbacks(checkpoint.get("callbacks"), trainer)
            weight_averaging.check_weight_averaging(checkpoint, trainer)
        self.resumed = resuming.SavedOptimization.from_checkpoint(checkpoint)
        self.resumed_states = checkpoint.get("random_states")
