"""Learning-rate schedule of adversarial domain adaptation: the rate falls as a power of the step."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_recall.checks import check_above_zero


class InverseDecayLR(LRScheduler):
    """Multiplies the learning rates by (1 + rate * step) ** -power.

    The released code of DM-ADA has rate 1e-4 and power 1, and counts iterations. tllib trains DANN on photographs with
    rate 1e-3 and power 0.75. In a module, set `lr_interval` to "step" to count steps; `NetworkOptimizer` does so by
    default.

    Args:
        optimizer: its learning rates at construction are those of step 0.
        rate: at least 0; 0 keeps the learning rates.
        power: above 0.

    Raises:
        ValueError: for numbers out of range.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    >>> scheduler = InverseDecayLR(optimizer, rate=1.0)
    >>> rates = []
    >>> for _ in range(3):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 2))
    ...     optimizer.step()
    ...     scheduler.step()
    >>> rates
    [1.0, 0.5, 0.33]
    """

    def __init__(self, optimizer: Optimizer, rate: float = 1e-4, power: float = 1.0) -> None:
        if not 0 <= rate < math.inf:
            raise ValueError(f"rate must be a finite number of at least 0, got {rate}.")
        check_above_zero(power=power)
        self.rate, self.power = rate, power
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Learning rates of the parameter groups in the current step."""
        factor = 1 / (1 + self.rate * self.last_epoch) ** self.power
        return [base_lr * factor for base_lr in self.base_lrs]
