"""What the Trainer leaves undone in manual optimization: clipping, accumulation, schedulers."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_recall._lightning import (
    BaseFinetuning,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LightningModule,
    LRSchedulerCallable,
    OptimizerCallable,
    ReduceLROnPlateau,
    Trainer,
    callbacks_of,
)
from lightning_recall.optimization.resuming import (
    check_callbacks,
    check_no_finder,
    check_parameters,
    check_settings,
    check_waiting,
    optimization_settings,
)
from lightning_recall.optimization.schedules import check_schedules


class ManualOptimization(LightningModule):
    """Turns one loss a batch into optimizer steps, with all that automatic optimization does besides.

    A subclass computes a loss and calls `optimize`. Schedulers step by the batch or by the epoch, gradients are clipped
    where they are no longer scaled by mixed precision, several batches may make one step, and a checkpoint between
    them keeps the gradients. `gradient_clip_val` and `accumulate_grad_batches` are arguments of the module, not of the
    Trainer. `training_step` should return `{"loss": loss.detach()}`, which LearningRateFinder and SpikeDetection read.

    `configure_optimizers` may be overridden with any optimizers and schedulers, with interval and frequency, as
    Lightning takes them; `global_step` counts the steps of every optimizer. `optimizer_step`, `optimizer_zero_grad`,
    `on_before_zero_grad`, `configure_gradient_clipping` and `lr_scheduler_step` may be overridden as in automatic
    optimization, and are called in its order, with one difference: when `optimizer_step` is called the gradients are
    there already, and its closure does nothing. Overrides of the other hooks defined here must call `super()`.

    A resumed training keeps the optimizer and schedule of its checkpoint: other settings are refused.

    After `Tuner.lr_find` the attribute `lr` is the learning rate of all parameters but those of `loss_lr`; None, the
    default: the optimizer's own.

    Args:
        optimizer: parameters -> optimizer; None: AdamW with a learning rate of 1e-4.
        loss_lr: learning rate of the parameters of `self.loss`, such as proxies; None: as the others'.
        lr_scheduler: optimizer -> scheduler, or several that step together, such as a warm-up and a decay; None: a
            constant learning rate. For `ReduceLROnPlateau` take `pytorch_lightning.cli.ReduceLROnPlateau`, which tells
            its monitor.
        lr_interval: whether schedulers step after every "epoch" or every optimizer "step".
        lr_frequency: of how many epochs or steps a scheduler steps after the last, from 1.
        gradient_clip_val: largest norm, or value, of the gradient; None: not clipped.
        gradient_clip_algorithm: whether that is the "norm" of the whole gradient, or the "value" of each number in it.
        accumulate_grad_batches: how many batches make one step, on the mean of their gradients, from 1. The last step
            of an epoch may have fewer.

    Raises:
        ValueError: for numbers out of range; when the training starts, for a plateau by the step, schedules that cannot
            work or overrule `loss_lr` or `lr`, arguments given to the Trainer instead of the module, and a resumed
            training whose optimizer or schedule is not the checkpoint's.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        loss_lr: float | None = None,
        lr_scheduler: LRSchedulerCallable | list[LRSchedulerCallable] | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        lr_frequency: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        accumulate_grad_batches: int = 1,
    ) -> None:
        super().__init__()
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"gradient_clip_val must be above 0, or None for no clipping, got {gradient_clip_val}.")
        if accumulate_grad_batches < 1 or lr_frequency < 1:
            raise ValueError(
                "accumulate_grad_batches and lr_frequency must be at least 1, "
                f"got {accumulate_grad_batches} and {lr_frequency}."
            )
        self.automatic_optimization = False
        self.optimizer = optimizer
        self.loss_lr = loss_lr
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.lr_frequency = lr_frequency
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.accumulate_grad_batches = accumulate_grad_batches
        self.lr: float | None = None  # set by Tuner.lr_find
        self.accumulated = 0  # batches whose gradients wait for a step
        self.ended_epochs = 0  # that schedulers have seen the end of
        self.resumed_gradients: dict[str, Tensor] = {}
        self.resumed_metrics: dict[str, Tensor] = {}
        self.resumed_from: dict[str, Any] | None = None  # a checkpoint that is yet to be compared
        self.settings: dict[str, Any] = {}  # of optimizers and schedulers, as configured
        self.clipped = False

    def optimize(self, loss: Tensor) -> None:
        """Adds the gradient of a batch's loss, and makes a step where one is due."""
        if getattr(self.trainer.fit_loop, "_skip_backward", False):
            return  # StochasticWeightAveraging lets an epoch pass for the statistics of BatchNorm only
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        waiting, self.accumulated = self.accumulated, 0  # if backward fails, the next batch starts anew
        if waiting == 0:
            self.zero_gradients(optimizers)
        self.manual_backward(loss / self.accumulate_grad_batches)
        self.accumulated = waiting + 1
        if self.accumulated == self.accumulate_grad_batches or self.trainer.is_last_batch:
            self.step_optimizers(optimizers)
        if self.trainer.is_last_batch:  # and not later: a checkpoint may be saved when the batch ends
            self.end_epoch()

    def zero_gradients(self, optimizers: list[Any]) -> None:
        """Frees the gradients of the last step, by the hooks of automatic optimization."""
        for optimizer in optimizers:
            for callback in callbacks_of(self.trainer):
                callback.on_before_zero_grad(self.trainer, self, optimizer.optimizer)
            self.on_before_zero_grad(optimizer.optimizer)
            self.optimizer_zero_grad(self.current_epoch, self.trainer.fit_loop.batch_idx, optimizer.optimizer)

    def step_optimizers(self, optimizers: list[Any]) -> None:
        """A step with the gradients that wait."""
        self.clipped = False
        for optimizer in optimizers:
            before = self.trainer.global_step
            self.optimizer_step(self.current_epoch, self.trainer.fit_loop.batch_idx, optimizer, lambda: None)
            if self.gradient_clip_val is not None and not self.clipped and self.trainer.global_step > before:
                raise ValueError(f"{type(self).__name__}.on_before_optimizer_step must call super(), which clips.")
        self.accumulated = 0
        self.step_schedulers("step", self.trainer.global_step // len(optimizers))

    def end_epoch(self) -> None:
        """Steps the epoch's schedulers, once."""
        if self.ended_epochs <= self.current_epoch:
            self.ended_epochs = self.current_epoch + 1
            self.step_schedulers("epoch", self.ended_epochs)

    def configure_optimizers(self) -> Any:
        """The optimizer and schedulers that were asked for."""
        loss = getattr(self, "loss", None)
        of_loss = list(loss.parameters()) if isinstance(loss, nn.Module) and self.loss_lr is not None else []
        known = {id(p) for p in of_loss}
        groups: list[dict[str, Any]] = [{"params": [p for p in self.parameters() if id(p) not in known]}]
        if of_loss:
            groups.append({"params": of_loss, "lr": self.loss_lr})
        if self.lr is not None:
            groups[0]["lr"] = self.lr
        for group in groups:
            group["params"] = [p for p in group["params"] if p.requires_grad]
        optimizer = self.optimizer(groups) if self.optimizer else torch.optim.AdamW(groups, lr=1e-4)
        wanted = self.lr_scheduler if isinstance(self.lr_scheduler, Sequence) else [self.lr_scheduler]
        before = [group["lr"] for group in optimizer.param_groups]
        schedulers = [make(optimizer) for make in wanted if make is not None]
        after = [float(group["lr"]) for group in optimizer.param_groups]
        if of_loss and schedulers and len(set(after)) == 1 < len(set(map(float, before))):
            raise ValueError(
                f"{type(schedulers[-1]).__name__} sets a learning rate of its own for all parameters, so that loss_lr "
                f"would do nothing: give it one for the network and one for the loss, such as max_lr: {before}."
            )
        if self.lr is not None and optimizer.param_groups[0].get("initial_lr", self.lr) != self.lr:
            raise ValueError(
                f"{type(schedulers[-1]).__name__} sets a learning rate of its own, so that lr={self.lr:.3g} would do "
                "nothing: give it to the scheduler, such as max_lr, and set lr to None."
            )
        timing = {"interval": self.lr_interval, "frequency": self.lr_frequency}
        return [optimizer], [{"scheduler": scheduler, **timing} for scheduler in schedulers]

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Refuses settings of the Trainer that are arguments of the module: Lightning asks for callbacks first."""
        if self.trainer.state.fn == "fit":
            refuse_automatic_settings(self.trainer, self.accumulate_grad_batches)
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Forgets what a checkpoint loaded outside of a training has left."""
        self.accumulated, self.ended_epochs, self.resumed_gradients, self.resumed_metrics = 0, 0, {}, {}
        self.resumed_from = None

    def on_fit_start(self) -> None:
        """Compares the optimizers and schedulers with those of the checkpoint, which then replace them."""
        saved, self.resumed_from = self.resumed_from, None
        managed = any(isinstance(callback, BaseFinetuning) for callback in callbacks_of(self.trainer))
        self.settings = {} if managed else optimization_settings(self.trainer)  # else its groups are not ours
        if saved is not None:
            check_waiting(saved["accumulate_grad_batches"], self.accumulate_grad_batches)
        if saved is not None and not managed:
            if saved["settings"]:
                check_settings(saved["settings"], self.trainer)
            check_parameters(saved["optimizers"], self.trainer)

    def on_train_start(self) -> None:
        """Refuses schedules that cannot work with this training, new or resumed; takes up gradients that wait."""
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in self.trainer.optimizers):
            raise ValueError("LBFGS computes the loss several times a step, which a large batch cannot: take another.")
        check_schedules(self.trainer, self.accumulate_grad_batches)
        for callback in self.trainer.checkpoint_callbacks:
            if getattr(callback, "_train_time_interval", None) is not None:
                raise ValueError(
                    "ModelCheckpoint(train_time_interval=...) saves nothing in manual optimization: give "
                    "every_n_train_steps or every_n_epochs."
                )
        for name, parameter in self.named_parameters():
            if name in self.resumed_gradients:
                parameter.grad = self.resumed_gradients[name].to(parameter.device)
        self.resumed_gradients = {}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradient: here, and not in `training_step`, it is no longer scaled by mixed precision."""
        self.clipped = True
        algorithm = None if self.gradient_clip_val is None else self.gradient_clip_algorithm
        self.configure_gradient_clipping(optimizer, self.gradient_clip_val, algorithm)

    def on_validation_model_zero_grad(self) -> None:
        """Frees the gradients before a validation, unless they wait for a step."""
        if self.accumulated == 0:
            super().on_validation_model_zero_grad()

    def step_schedulers(self, interval: str, count: int) -> None:
        """Steps the schedulers of an interval, of which `count` are over; plateaus wait for the validation."""
        for config in self.trainer.lr_scheduler_configs:
            due = config.interval == interval and count % config.frequency == 0
            if due and not isinstance(config.scheduler, ReduceLROnPlateau):
                self.lr_scheduler_step(config.scheduler, None)

    def on_train_epoch_end(self) -> None:
        """Shows plateau schedulers their monitors, those of validation only after a validation.

        Where the last batch made no step, because `training_step` or a hook skipped it, the other schedulers step now,
        and gradients that wait are dropped, as in automatic optimization.
        """
        self.accumulated = 0
        self.end_epoch()
        every = self.trainer.check_val_every_n_epoch
        validated = every is not None and (self.current_epoch + 1) % every == 0
        for config in self.trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if not isinstance(scheduler, ReduceLROnPlateau) or (self.current_epoch + 1) % config.frequency:
                continue
            known = every is None and scheduler.monitor in self.trainer.callback_metrics
            if validated or known or not scheduler.monitor.startswith("val"):
                self.lr_scheduler_step(scheduler, self.monitored(scheduler.monitor))
        self.resumed_metrics = {}  # they were those of the epoch in which the checkpoint was saved

    def monitored(self, name: str) -> Tensor:
        """A metric that a plateau scheduler monitors."""
        metrics = {**self.resumed_metrics, **self.trainer.callback_metrics}
        if name not in metrics:
            raise ValueError(f"ReduceLROnPlateau monitors {name!r}, but only {sorted(metrics)} are logged.")
        return metrics[name]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the gradients that wait for a step, and the metrics that a plateau scheduler waits for."""
        checkpoint["ended_epochs"] = self.ended_epochs
        checkpoint["optimization_settings"] = self.settings
        checkpoint["metrics"] = {name: torch.as_tensor(m) for name, m in self.trainer.callback_metrics.items()}
        if self.accumulated:
            gradients = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
            checkpoint["accumulated"] = {"batches": self.accumulated, "gradients": gradients}
            checkpoint["accumulated"]["accumulate_grad_batches"] = self.accumulate_grad_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the gradients and metrics that were waited for."""
        if self._trainer is not None:  # else of load_from_checkpoint
            check_no_finder(self._trainer)
            check_callbacks(checkpoint.get("callbacks"), self._trainer)
        self.ended_epochs = checkpoint.get("ended_epochs", 0)
        self.resumed_metrics = checkpoint.get("metrics", {})
        waiting = checkpoint.get("accumulated", {"batches": 0, "gradients": {}})
        self.accumulated, self.resumed_gradients = waiting["batches"], waiting["gradients"]
        self.resumed_from = {
            "optimizers": checkpoint.get("optimizer_states"),
            "settings": checkpoint.get("optimization_settings", {}),
            "accumulate_grad_batches": waiting.get("accumulate_grad_batches"),
        }


def refuse_automatic_settings(trainer: Trainer, accumulate_grad_batches: int) -> None:
    """Raises ValueError for settings that Lightning knows in automatic optimization only, naming the module's own."""
    for name, unset in (("gradient_clip_val", 0), ("gradient_clip_algorithm", None), ("accumulate_grad_batches", 1)):
        value = getattr(trainer, name)
        if value not in (None, unset):
            value = getattr(value, "value", value)  # of an enum
            raise ValueError(
                f"The Trainer's {name}={value!r} does nothing in manual optimization: give {name}={value!r} to the "
                f"module instead of the Trainer; in the command --model.{name} {value}."
            )
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler):
            raise ValueError(
                "GradientAccumulationScheduler does nothing in manual optimization: give accumulate_grad_batches to "
                "the module; it is the same in all epochs."
            )
        if isinstance(callback, LearningRateFinder) and accumulate_grad_batches > 1:
            raise ValueError(
                "LearningRateFinder compares the losses of single batches: set the module's accumulate_grad_batches to "
                f"1 while it runs, got {accumulate_grad_batches}."
            )
