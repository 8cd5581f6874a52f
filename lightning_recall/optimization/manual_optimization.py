"""Gradient clipping, accumulation and schedulers for manual optimization, with one optimizer or several."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_recall._lightning import (
    Callback,
    LightningModule,
    LRSchedulerCallable,
    OptimizerCallable,
    attached_trainer,
    backward_is_skipped,
)
from lightning_recall.optimization import gradients, resuming, schedules, trainer_checks
from lightning_recall.optimization.optimizer_settings import (
    SHARED,
    OptimizerProgress,
    OptimizerSettings,
    check_losses,
    check_optimizers,
    parameters_of,
)
from lightning_recall.optimization.parameter_groups import ParameterGroup, build_optimizer, split_parameters


class ManualOptimization(LightningModule):
    """Runs backward passes and optimizer steps, with the features of automatic optimization.

    A subclass computes a loss in `training_step` and calls `optimize`. Schedulers step after each optimizer step or
    each epoch. Gradients are clipped after unscaling. Gradients can be accumulated, and checkpoints save accumulated
    gradients. `gradient_clip_val` and `accumulate_grad_batches` are arguments of the module, not of the Trainer.
    `training_step` should return `{"loss": loss.detach()}`, which LearningRateFinder and SpikeDetection read.

    `configure_optimizers` may be overridden with any optimizers and schedulers, with interval and frequency, as in
    Lightning; `global_step` counts the steps of every optimizer. `optimizer_step`, `optimizer_zero_grad`,
    `on_before_zero_grad`, `configure_gradient_clipping` and `lr_scheduler_step` may be overridden as in automatic
    optimization. They are called in the same order, but backward runs before `optimizer_step`, whose closure is a
    no-op. Overrides of the other hooks defined here must call `super()`.

    By default all optimizers step on the same loss. To give each its own, set `optimizer_settings` in `__init__`: a
    name and `OptimizerSettings` for each optimizer, in the order of `configure_optimizers`. Each optimizer then has
    its own losses, clipping, accumulation, cadence and schedulers, and `optimize` takes the losses by name:

        self.optimizer_settings = {"critic": OptimizerSettings(0.1), "generator": OptimizerSettings(every_n_batches=5)}
        ...
        self.optimize({"critic": critic_loss})  # steps the critic
        if self.is_due("generator"):
            self.optimize({"generator": self.generator_loss(batch)})

    Resuming restores optimizers and schedulers from the checkpoint; different settings raise an error.

    `lr` is set by `Tuner.lr_find`. It applies to parameter groups without their own rate; None uses the optimizer's.

    Args:
        optimizer: callable that builds the optimizer from `parameter_groups()`; None: AdamW with a rate of 1e-4.
        lr_scheduler: callable that builds a scheduler from the optimizer; or a list of such callables, whose schedulers
            all step at the same time, such as a warm-up and a decay; None: a constant learning rate. For
            `ReduceLROnPlateau` use `pytorch_lightning.cli.ReduceLROnPlateau`, which has a `monitor` argument.
        lr_interval: whether schedulers step after every "epoch" or optimizer "step"; always "step" for WarmupCosineLR.
        lr_frequency: step the scheduler every `lr_frequency` epochs or steps; at least 1.
        gradient_clip_val: maximum norm, or value, of the gradient; None: no clipping.
        gradient_clip_algorithm: clips the "norm" of the whole gradient, or clips each gradient element ("value").
        accumulate_grad_batches: number of batches whose gradients are averaged for one step; at least 1. The last
            step of an epoch may have fewer.

    Raises:
        ValueError: for numbers out of range. The start of training raises for ReduceLROnPlateau with
            `lr_interval="step"`. It raises for schedulers that end before the training, or that override the learning
            rates of parameter groups or `lr`. It raises for arguments given to the Trainer instead of the module. It
            raises for optimizers that differ from `optimizer_settings` or from the checkpoint.
    """

    read_at_configuration: ClassVar[Sequence[str]] = ("optimizer", "lr", "lr_scheduler", "lr_interval", "lr_frequency")
    """attributes that only `configure_optimizers` reads: later changes have no effect"""

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | list[LRSchedulerCallable] | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        lr_frequency: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        accumulate_grad_batches: int = 1,
    ) -> None:
        super().__init__()
        if lr_frequency < 1:
            raise ValueError(f"lr_frequency must be at least 1, got {lr_frequency}.")
        self.automatic_optimization = False
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.lr_frequency = lr_frequency
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.accumulate_grad_batches = accumulate_grad_batches
        self.module_settings()  # validates the arguments: OptimizerSettings raises ValueError
        self.optimizer_settings: dict[str, OptimizerSettings] = {}
        self.lr: float | None = None  # set by Tuner.lr_find
        self.progress: dict[str, OptimizerProgress] = defaultdict(OptimizerProgress)
        self.resumed: resuming.SavedOptimization | None = None
        self.initial_settings: dict[str, Any] = {}  # of optimizers and schedulers
        self.clipped = False
        self.has_frozen_parameters = False  # whether the optimizers have parameters that are frozen now

    def optimize(self, losses: Tensor | dict[str, Tensor]) -> None:
        """Adds the gradients of a batch's losses, and steps the optimizers that are due.

        A named loss only changes the gradients of its optimizer's parameters, averaged over the processes (DDP). All
        backward passes come before the first step, so losses in one call may share a graph. Compute a loss after the
        previous call if it depends on parameters which that call updated.

        Args:
            losses: the loss of all optimizers; or optimizer name -> loss.

        Raises:
            ValueError: for names that are not in `optimizer_settings`, or for a single loss if that is set.
        """
        if backward_is_skipped(self.trainer):
            return
        losses = {SHARED: losses} if isinstance(losses, Tensor) else losses
        check_losses(losses, self.optimizer_settings)
        used = [name for name in losses if self.uses_batch(name)]
        for name in used:
            self.add_loss(name, losses[name], retain_graph=name != used[-1])
        for name in losses:
            accumulated = self.progress[name].accumulated_batches
            is_full = accumulated == self.settings_of(name).accumulate_grad_batches
            if accumulated and (is_full or self.trainer.is_last_batch):
                self.step_optimizers(name)
            if self.trainer.is_last_batch:  # must happen here: a checkpoint may be saved in on_train_batch_end
                self.end_epoch(name)

    def is_due(self, name: str) -> bool:
        """Whether `optimize` needs the loss of an optimizer in this batch, which depends on `every_n_batches`."""
        return self.uses_batch(name) or (self.trainer.is_last_batch and self.progress[name].accumulated_batches > 0)

    def uses_batch(self, name: str) -> bool:
        """Whether an optimizer uses this batch."""
        return (self.trainer.fit_loop.total_batch_idx + 1) % self.settings_of(name).every_n_batches == 0

    def module_settings(self) -> OptimizerSettings:
        """The settings that are arguments of the module."""
        return OptimizerSettings(self.gradient_clip_val, self.gradient_clip_algorithm, self.accumulate_grad_batches)

    def settings_of(self, name: str) -> OptimizerSettings:
        """The settings of the optimizer with this name; those of all optimizers for `SHARED`."""
        return self.module_settings() if name == SHARED else self.optimizer_settings[name]

    def optimizers_of(self, name: str) -> list[Any]:
        """The optimizer with this name, in a list; all optimizers for `SHARED`."""
        optimizers: Any = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        return optimizers if name == SHARED else [optimizers[list(self.optimizer_settings).index(name)]]

    def add_loss(self, name: str, loss: Tensor, retain_graph: bool) -> None:
        """Adds the gradient of a loss, divided by `accumulate_grad_batches`."""
        optimizers, progress = self.optimizers_of(name), self.progress[name]
        accumulated, progress.accumulated_batches = progress.accumulated_batches, 0  # stays 0 if backward fails
        if accumulated == 0:
            gradients.zero_gradients(self, optimizers)
        loss = loss / self.settings_of(name).accumulate_grad_batches
        if name == SHARED:
            gradients.add_shared_gradients(self, loss, optimizers, self.has_frozen_parameters)
        else:
            gradients.add_gradients(self, loss, parameters_of(optimizers[0]), retain_graph)
        progress.accumulated_batches = accumulated + 1

    def step_optimizers(self, name: str) -> None:
        """Steps the optimizer with this name, or all for `SHARED`; then their schedulers."""
        optimizers, progress, start = self.optimizers_of(name), self.progress[name], self.trainer.global_step
        scale = gradients.gradient_scale(self.trainer, self.device) if name == SHARED and len(optimizers) > 1 else None
        for optimizer in optimizers:
            if name != SHARED or scale is not None:  # a step of another optimizer may have changed the scale
                gradients.rescale_gradients(self, parameters_of(optimizer), scale)
            before, self.clipped = self.trainer.global_step, False
            self.optimizer_step(self.current_epoch, self.trainer.fit_loop.batch_idx, optimizer, lambda: None)
            clips = self.settings_of(name).gradient_clip_val is not None
            if clips and not self.clipped and self.trainer.global_step > before:
                raise ValueError(f"{type(self).__name__}.on_before_optimizer_step must call super(), which clips.")
        progress.accumulated_batches = 0
        if name == SHARED:
            self.step_schedulers("step", self.trainer.global_step // len(optimizers), name)
        elif self.trainer.global_step > start:
            progress.steps += 1
            self.step_schedulers("step", progress.steps, name)

    def step_schedulers(self, interval: Literal["step", "epoch"], count: int, name: str) -> None:
        """Steps schedulers due after `count` steps or epochs; on_train_epoch_end steps ReduceLROnPlateau."""
        optimizer = None if name == SHARED else self.optimizers_of(name)[0].optimizer
        for scheduler in schedules.due_schedulers(self.trainer, interval, count, optimizer):
            self.lr_scheduler_step(scheduler, None)

    def end_epoch(self, name: str) -> None:
        """Steps the schedulers with the interval "epoch", once per epoch."""
        progress = self.progress[name]
        if progress.scheduled_epochs <= self.current_epoch:
            progress.scheduled_epochs = self.current_epoch + 1
            self.step_schedulers("epoch", progress.scheduled_epochs, name)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Parameter groups of the optimizer; override it to give submodules their own learning rate."""
        return split_parameters(self)

    def configure_optimizers(self) -> Any:
        """Builds the optimizer and schedulers."""
        factories = self.lr_scheduler if isinstance(self.lr_scheduler, Sequence) else [self.lr_scheduler]
        optimizer, schedulers = build_optimizer(self.parameter_groups(), self.optimizer, factories, self.lr)
        return [optimizer], [
            schedules.schedule_config(item, self.lr_interval, self.lr_frequency) for item in schedulers
        ]

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Checks the Trainer's settings: called here because `configure_callbacks` is the first hook."""
        if self.trainer.state.fn == "fit":
            trainer_checks.check_trainer_settings(self.trainer, self.accumulate_grad_batches)
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Resets state left over from a previously loaded checkpoint."""
        self.progress, self.resumed = defaultdict(OptimizerProgress), None

    def on_fit_start(self) -> None:
        """Checks the optimizers, also against the checkpoint, before Lightning restores it."""
        if self.optimizer_settings:
            check_optimizers(self.trainer, self.optimizer_settings, self.module_settings())
        settings = self.settings_by_optimizer()
        if self.resumed is not None:
            resuming.check_names([*self.progress], [*settings])
        self.initial_settings = resuming.compare_with_checkpoint(self.trainer, self.resumed, settings)

    def settings_by_optimizer(self) -> dict[str, OptimizerSettings]:
        """Name of each optimizer -> its settings; `SHARED` -> those of all optimizers, if they have no names."""
        return self.optimizer_settings or {SHARED: self.module_settings()}

    def on_train_start(self) -> None:
        """Checks that schedulers fit the length of training and optimizers are supported; restores gradients."""
        trainer_checks.check_optimizer_classes(self.trainer)
        schedules.check_schedules(self.trainer, self.settings_by_optimizer())
        trainer_checks.check_checkpoint_times(self.trainer)
        if self.resumed is not None:
            self.resumed.restore_gradients(self)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradient: here, unlike in `training_step`, it is not scaled by mixed precision."""
        self.clipped = True
        names = list(self.optimizer_settings)
        settings = self.settings_of(names[self.trainer.optimizers.index(optimizer)] if names else SHARED)
        algorithm = None if settings.gradient_clip_val is None else settings.gradient_clip_algorithm
        self.configure_gradient_clipping(optimizer, settings.gradient_clip_val, algorithm)

    def on_validation_model_zero_grad(self) -> None:
        """Frees the gradients before a validation, unless gradients are being accumulated."""
        if not any(progress.accumulated_batches for progress in self.progress.values()):
            super().on_validation_model_zero_grad()

    def on_train_epoch_end(self) -> None:
        """Steps ReduceLROnPlateau with its monitored metric; validation metrics only after a validation.

        If the last batch was skipped, steps the other schedulers and discards accumulated gradients, as in automatic
        optimization.
        """
        for name in self.settings_by_optimizer():
            self.progress[name].accumulated_batches = 0
            self.end_epoch(name)
        saved = {} if self.resumed is None else self.resumed.metrics
        for scheduler, metric in schedules.due_plateau_schedulers(
            self.trainer, {**saved, **self.trainer.callback_metrics}
        ):
            self.lr_scheduler_step(scheduler, metric)
        self.resumed = None  # its metrics belong to the epoch that has ended

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves accumulated gradients, the optimizers' progress and the metrics needed by ReduceLROnPlateau."""
        checkpoint["optimization_settings"] = self.initial_settings
        checkpoint["metrics"] = {name: torch.as_tensor(m) for name, m in self.trainer.callback_metrics.items()}
        checkpoint["optimizer_progress"] = {name: dict(vars(progress)) for name, progress in self.progress.items()}
        if any(progress.accumulated_batches for progress in self.progress.values()):
            accumulated = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
            batches = {name: s.accumulate_grad_batches for name, s in self.settings_by_optimizer().items()}
            checkpoint["accumulated"] = {"gradients": accumulated, "accumulate_grad_batches": batches}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores accumulated gradients, progress and metrics."""
        resuming.check_callbacks(checkpoint.get("callbacks"), attached_trainer(self))
        for name, saved in checkpoint.get("optimizer_progress", {}).items():
            self.progress[name] = OptimizerProgress(**saved)
        self.resumed = resuming.SavedOptimization.from_checkpoint(checkpoint)
