"""What the Trainer leaves undone in manual optimization: clipping, accumulation, schedulers."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.types import LRSchedulerConfig
from torch import Tensor, nn


class ManualOptimization(LightningModule):
    """Turns one loss a batch into optimizer steps, with all that automatic optimization does besides.

    A subclass computes a loss and calls `optimize`. Schedulers step by the batch or by the epoch, gradients are clipped
    where they are no longer scaled by mixed precision, several batches may make one step, and a checkpoint between
    them keeps the gradients. The Trainer's own `gradient_clip_val` and `accumulate_grad_batches` are refused by
    Lightning in manual optimization: here they are arguments of the module.

    `configure_optimizers` may be overridden with any optimizers and schedulers, with interval and frequency, as
    Lightning takes them; `global_step` counts the steps of every optimizer.

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
        ValueError: for numbers out of range, a plateau by the step, and schedules that cannot work or overrule
            `loss_lr` (when the training starts).
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
        self.accumulated = 0  # batches whose gradients wait for a step
        self.ended_epochs = 0  # that schedulers have seen the end of
        self.resumed_gradients: dict[str, Tensor] = {}
        self.resumed_metrics: dict[str, Tensor] = {}

    def optimize(self, loss: Tensor) -> None:
        """Adds the gradient of a batch's loss, and makes a step where one is due."""
        if getattr(self.trainer.fit_loop, "_skip_backward", False):
            return  # StochasticWeightAveraging lets an epoch pass for the statistics of BatchNorm only
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        if self.accumulated == 0:
            for optimizer in optimizers:
                optimizer.zero_grad()
        self.manual_backward(loss / self.accumulate_grad_batches)
        self.accumulated += 1
        if self.accumulated == self.accumulate_grad_batches or self.trainer.is_last_batch:
            self.step_optimizers(optimizers)
        if self.trainer.is_last_batch:  # and not later: a checkpoint may be saved when the batch ends
            self.end_epoch()

    def step_optimizers(self, optimizers: list[Any]) -> None:
        """A step with the gradients that wait."""
        for optimizer in optimizers:
            optimizer.step()
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
        timing = {"interval": self.lr_interval, "frequency": self.lr_frequency}
        return [optimizer], [{"scheduler": scheduler, **timing} for scheduler in schedulers]

    def setup(self, stage: str) -> None:
        """Forgets what a checkpoint loaded outside of a training has left."""
        self.accumulated, self.ended_epochs, self.resumed_gradients, self.resumed_metrics = 0, 0, {}, {}

    def on_train_start(self) -> None:
        """Refuses schedules that cannot work with this training, new or resumed; takes up gradients that wait."""
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in self.trainer.optimizers):
            raise ValueError("LBFGS computes the loss several times a step, which a large batch cannot: take another.")
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                check_plateau(config)
            else:
                self.check_length(config)
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

    def check_length(self, config: LRSchedulerConfig) -> None:
        """Compares the training with a schedule that has an end, such as OneCycleLR's."""
        trainer, total = self.trainer, getattr(config.scheduler, "total_steps", None)
        planned: float = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
        if config.interval == "step":
            batches = trainer.num_training_batches
            planned *= batches if batches == math.inf else -(-batches // self.accumulate_grad_batches)
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

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradient: here, and not in `training_step`, it is no longer scaled by mixed precision."""
        if self.gradient_clip_val is not None:
            self.clip_gradients(optimizer, self.gradient_clip_val, self.gradient_clip_algorithm)

    def on_validation_model_zero_grad(self) -> None:
        """Frees the gradients before a validation, unless they wait for a step."""
        if self.accumulated == 0:
            super().on_validation_model_zero_grad()

    def step_schedulers(self, interval: str, count: int) -> None:
        """Steps the schedulers of an interval, of which `count` are over; plateaus wait for the validation."""
        for config in self.trainer.lr_scheduler_configs:
            due = config.interval == interval and count % config.frequency == 0
            if due and not isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step()

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
                scheduler.step(self.monitored(scheduler.monitor))
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
        checkpoint["metrics"] = {name: torch.as_tensor(m) for name, m in self.trainer.callback_metrics.items()}
        if self.accumulated:
            gradients = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
            checkpoint["accumulated"] = {"batches": self.accumulated, "gradients": gradients}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the gradients and metrics that were waited for."""
        self.ended_epochs = checkpoint.get("ended_epochs", 0)
        self.resumed_metrics = checkpoint.get("metrics", {})
        waiting = checkpoint.get("accumulated", {"batches": 0, "gradients": {}})
        self.accumulated, self.resumed_gradients = waiting["batches"], waiting["gradients"]


def check_plateau(config: LRSchedulerConfig) -> None:
    """Raises ValueError unless a plateau scheduler tells its monitor and waits for the end of an epoch."""
    if config.interval == "step":
        raise ValueError('ReduceLROnPlateau waits for a validation: set lr_interval="epoch".')
    if not isinstance(config.scheduler, ReduceLROnPlateau):
        raise ValueError(
            "torch's ReduceLROnPlateau does not tell what to monitor: use pytorch_lightning.cli.ReduceLROnPlateau."
        )
