"""Learning-rate schedule of fine-tuning: a linear warm-up, then a cosine to zero."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_recall.checks import check_integer


class WarmupCosineLR(LRScheduler):
    """Raises the learning rates linearly from near zero to their values, then lowers them to 0 along a cosine.

    It scales the learning rate of each parameter group, so groups keep their ratios. Steps after every optimizer step.
    In a `ManualOptimization` or `AutomaticOptimization`, such as `RetrievalModule` or `SegmentationModule`, it does so
    whatever `lr_interval` says, and `total_steps` may be None: it is then the number of optimizer steps of the whole
    training. Outside a Trainer, pass `total_steps`.

    In step t of T, counted from 0, with a warm-up of W steps, the rate is multiplied by

        (t + 1) / (W + 1)                            if t < W
        (1 + cos(pi (t - W) / (T - W))) / 2          otherwise

    Args:
        optimizer: its learning rates at construction are the highest.
        warmup: below 1: fraction of `total_steps`; from 1: number of steps. 0: no warm-up.
        total_steps: T, number of optimizer steps until the rate is 0; None: the length of the training.

    Raises:
        ValueError: for a `warmup` below 0, or above 1 and not whole, a `total_steps` below 1, a warm-up that is not
            shorter than `total_steps`; in `step`, if `total_steps` is not known.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    >>> scheduler = WarmupCosineLR(optimizer, warmup=1, total_steps=3)
    >>> rates = []
    >>> for _ in range(3):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 2))
    ...     optimizer.step()
    ...     scheduler.step()
    >>> rates
    [0.5, 1.0, 0.5]
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.1, total_steps: int | None = None) -> None:
        if not warmup >= 0 or (warmup >= 1 and (warmup == math.inf or warmup != int(warmup))):
            raise ValueError(
                "warmup must be a fraction of the training, from 0 to below 1, or a whole number of steps, got "
                f"{warmup}."
            )
        self.warmup = warmup
        self.given_total_steps = total_steps
        self.total_steps: int | None = None
        if total_steps is not None:
            self.check_total_steps(total_steps)
            self.total_steps = total_steps
        super().__init__(optimizer)

    def check_total_steps(self, total_steps: int) -> None:
        """Raises ValueError unless the warm-up is shorter than the schedule."""
        check_integer("total_steps", total_steps, 1)
        if self.warmup >= 1 and self.warmup >= total_steps:
            raise ValueError(
                f"A warm-up of {self.warmup:.0f} steps does not fit in a training of {total_steps} steps: set warmup "
                "to a fraction, such as 0.1, or train for longer."
            )

    def set_total_steps(self, total_steps: int) -> None:
        """Sets the length of the schedule, and the learning rates of the first step. Call it before the first step.

        Raises:
            ValueError: if the warm-up is not shorter.
        """
        self.check_total_steps(total_steps)
        self.total_steps = total_steps
        self._last_lr: list[Any] = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr

    def factor(self, step: int) -> float:
        """Factor of the learning rates in a step, counted from 0; 1 while `total_steps` is not known."""
        if self.total_steps is None:
            return 1.0
        warmup = int(self.warmup) if self.warmup >= 1 else round(self.warmup * self.total_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if step >= self.total_steps:
            return 0.0
        return (1 + math.cos(math.pi * (step - warmup) / (self.total_steps - warmup))) / 2

    def get_lr(self) -> list[Any]:
        """Learning rates of the parameter groups in the current step."""
        if self.total_steps is None and self.last_epoch > 0:
            raise ValueError(
                "WarmupCosineLR needs total_steps, the number of optimizer steps of the training: pass it, because "
                "only RetrievalModule, SegmentationModule and other subclasses of ManualOptimization or "
                "AutomaticOptimization fill it in."
            )
        return [base_lr * self.factor(self.last_epoch) for base_lr in self.base_lrs]
