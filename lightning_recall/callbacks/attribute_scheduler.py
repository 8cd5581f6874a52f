"""Changes attributes of a module on a per-epoch schedule."""

import math
import re
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_recall._lightning import Callback, LightningModule, Trainer


class AttributeScheduler(Callback):
    """Sets module attributes at the start of each epoch, such as loss weights or temperatures.

    Numbers, and lists of numbers, are interpolated linearly between the given epochs; other values, such as None, hold
    until the next given epoch. Before the first given epoch and after the last the value is constant. A resumed run
    uses the values of its epoch.

    Values are rounded (half up) for attributes that the constructor annotates as int. Without an annotation, they are
    rounded if the attribute's value is an int when training starts. All other values are floats, even if the schedule
    contains integers. Examples of integers are `ks`, `chunk_size` and `accumulate_grad_batches`.

    Args:
        schedules: name of an attribute -> {epoch: value}. The name is a path from the module, such as
            `loss.rank_temperature`, `loss.weights`, `loss.losses.0.k_temperature` or `mixup.max_virtual_per_class`.

    Raises:
        ValueError: for empty schedules or negative epochs. At training start, for an attribute that does not exist, is
            a parameter, buffer, module or read-only property, or is only read when the optimizer is built (`lr`,
            `optimizer`, ...). Also at training start, if the schedule of an integer attribute contains a fraction.

    >>> scheduler = AttributeScheduler({"loss.rank_temperature": {0: 0.05, 10: 0.01}})
    >>> [round(scheduler.value("loss.rank_temperature", epoch), 3) for epoch in (0, 5, 10, 20)]
    [0.05, 0.03, 0.01, 0.01]
    """

    def __init__(self, schedules: dict[str, dict[int, Any]]) -> None:
        if not schedules or not all(schedules.values()) or min(map(min, schedules.values())) < 0:
            raise ValueError(
                f"schedules must map each attribute to at least one {{epoch: value}} with epoch >= 0, got {schedules}."
            )
        self.schedules = {name: dict(sorted(schedule.items())) for name, schedule in schedules.items()}
        self.is_integer: dict[str, bool] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that all attributes exist and can be set."""
        for name in self.schedules:
            owner, _, attribute = name.rpartition(".")
            try:
                value = getattr(pl_module.get_submodule(owner), attribute)
            except AttributeError:
                raise ValueError(f"AttributeScheduler: {type(pl_module).__name__} has no attribute {name}.") from None
            try:
                setattr(pl_module.get_submodule(owner), attribute, value)
            except AttributeError:
                value = pl_module  # a read-only property
            if isinstance(value, Tensor | nn.Module):
                raise ValueError(
                    f"AttributeScheduler: {name} is a parameter, buffer, module or read-only property and cannot be "
                    "scheduled."
                )
            if name in getattr(pl_module, "read_at_configuration", ()):
                raise ValueError(
                    f"AttributeScheduler: {name} is only read in configure_optimizers, so a schedule has no effect; "
                    "use an lr_scheduler."
                )
            self.is_integer[name] = is_integer_attribute(pl_module.get_submodule(owner), attribute)
            self.check_integers(name)

    def check_integers(self, name: str) -> None:
        """Raises ValueError if the schedule of an integer attribute contains a fraction."""
        for epoch, value in self.schedules[name].items() if self.is_integer[name] else ():
            if any(isinstance(number, float) and not number.is_integer() for number in numbers_of(value)):
                raise ValueError(f"AttributeScheduler: {name} takes integers, got {value} for epoch {epoch}.")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the values for this epoch."""
        for name in self.schedules:
            owner, _, attribute = name.rpartition(".")
            setattr(pl_module.get_submodule(owner), attribute, self.value(name, trainer.current_epoch))

    def value(self, name: str, epoch: int) -> Any:
        """Value of an attribute at an epoch."""
        schedule = self.schedules[name]
        previous_epoch = max((given for given in schedule if given <= epoch), default=min(schedule))
        next_epoch = min((given for given in schedule if given > epoch), default=previous_epoch)
        value = interpolate(epoch, (previous_epoch, next_epoch), schedule[previous_epoch], schedule[next_epoch])
        return cast_numbers(value, self.is_integer[name]) if name in self.is_integer else value


def interpolate(epoch: int, epochs: tuple[int, int], start: Any, end: Any) -> Any:
    """Linear interpolation between numbers, or between lists of numbers; the start for any other values.

    Args:
        epoch: where to interpolate.
        epochs: two epochs, in ascending order.
        start: value at the first of them.
        end: value at the second.
    """
    if epoch <= epochs[0] or epochs[0] == epochs[1]:
        return start
    if isinstance(start, list | tuple) and isinstance(end, list | tuple) and len(start) == len(end):
        return [interpolate(epoch, epochs, *pair) for pair in zip(start, end, strict=True)]
    return float(np.interp(epoch, epochs, (start, end))) if is_number(start) and is_number(end) else start


def cast_numbers(value: Any, integers: bool) -> Any:
    """Rounds numbers half up to int, or casts them to float; other values are unchanged.

    Rounds half up, unlike Python's round (half to even), so that steps of 1 stay distinct.
    """
    if isinstance(value, list | tuple):
        return type(value)(cast_numbers(part, integers) for part in value)
    if not is_number(value) or not math.isfinite(value):
        return value
    return math.floor(value + 0.5) if integers else float(value)


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers_of(value: Any) -> list[Any]:
    """Returns the numbers in a (nested) list; a single number becomes a list of one."""
    if isinstance(value, list | tuple):
        return [number for part in value for number in numbers_of(part)]
    return [value] if is_number(value) else []


def is_integer_attribute(owner: nn.Module, attribute: str) -> bool:
    """Whether an attribute is an integer, by its annotation in __init__ or by its current value."""
    for base_class in type(owner).__mro__:
        annotation = str(getattr(vars(base_class).get("__init__"), "__annotations__", {}).get(attribute, ""))
        if re.search(r"\b(int|float)\b", annotation):
            return re.search(r"\bfloat\b", annotation) is None
    numbers = numbers_of(getattr(owner, attribute))
    return bool(numbers) and all(isinstance(number, int) for number in numbers)
