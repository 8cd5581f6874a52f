"""Settings of a module that change in the course of a training."""

import math
import re
from typing import Any

from torch import Tensor, nn

from lightning_recall._lightning import Callback, LightningModule, Trainer

READ_ONCE = ("optimizer", "lr", "loss_lr", "lr_scheduler", "lr_interval", "lr_frequency")  # when the optimizer is made


class AttributeScheduler(Callback):
    """Sets attributes of the module as epochs begin: weights of losses, temperatures, how much is mixed.

    Between two epochs that are named, numbers, and lists of them, change in a straight line from epoch to epoch; other
    values, such as None, stay until the next. Before the first and after the last they stay. A resumed training goes on
    with the values of its epoch. Settings that are integers by the type of the constructor's argument (`ks`,
    `chunk_size`, `accumulate_grad_batches`; without a type, by the value that the attribute holds) are rounded, half
    up; all others are real numbers, also where the schedule is written in integers.

    Args:
        settings: name of an attribute -> {epoch: value}. The name is a path from the module, such as
            `loss.rank_temperature`, `loss.weights`, `loss.losses.0.k_temperature` or `mixup.max_virtual_per_class`.

    Raises:
        ValueError: for no settings, epochs below 0, and, when the training starts, an attribute that is not there
            or is a parameter, a buffer, a module or a property that can only be read, a setting that is read only when
            the optimizer is made (`lr`, `optimizer`, ...), and a fraction for a setting that is an integer.

    >>> schedule = AttributeScheduler({"loss.rank_temperature": {0: 0.05, 10: 0.01}})
    >>> [round(schedule.value("loss.rank_temperature", epoch), 3) for epoch in (0, 5, 10, 20)]
    [0.05, 0.03, 0.01, 0.01]
    """

    def __init__(self, settings: dict[str, dict[int, Any]]) -> None:
        if not settings or not all(settings.values()) or min(min(points) for points in settings.values()) < 0:
            raise ValueError(f"settings must hold a value from some epoch (from 0) for each attribute, got {settings}.")
        self.settings = {name: dict(sorted(points.items())) for name, points in settings.items()}
        self.integers: dict[str, bool] = {}  # whether an attribute holds integers, or real numbers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses attributes that are not there or cannot be set."""
        for name in self.settings:
            owner, _, attribute = name.rpartition(".")
            try:
                value = getattr(pl_module.get_submodule(owner), attribute)
            except AttributeError:
                raise ValueError(f"AttributeScheduler: {type(pl_module).__name__} has no attribute {name}.") from None
            try:
                setattr(pl_module.get_submodule(owner), attribute, value)
            except AttributeError:
                value = pl_module  # a property that can only be read
            if isinstance(value, Tensor | nn.Module):
                raise ValueError(
                    f"AttributeScheduler: {name} is no setting, but a part of the module: it cannot be set."
                )
            if name in READ_ONCE and all(hasattr(pl_module, other) for other in READ_ONCE):
                raise ValueError(
                    f"AttributeScheduler: {name} is read once, when the optimizer is made, so that a schedule would do "
                    "nothing: give the module an lr_scheduler."
                )
            self.integers[name] = takes_integers(pl_module.get_submodule(owner), attribute)
            self.check_integers(name)

    def check_integers(self, name: str) -> None:
        """Refuses fractions for a setting that is an integer."""
        for epoch, value in self.settings[name].items() if self.integers[name] else ():
            if any(isinstance(number, float) and not number.is_integer() for number in numbers_of(value)):
                raise ValueError(f"AttributeScheduler: {name} takes integers, got {value} for epoch {epoch}.")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets what this epoch begins with."""
        for name in self.settings:
            owner, _, attribute = name.rpartition(".")
            setattr(pl_module.get_submodule(owner), attribute, self.value(name, trainer.current_epoch))

    def value(self, name: str, epoch: int) -> Any:
        """What an attribute is in an epoch."""
        points = list(self.settings[name].items())
        before = [point for point in points if point[0] <= epoch] or points[:1]
        after = [point for point in points if point[0] > epoch]
        first, start = before[-1]
        last, end = after[0] if after and epoch > first else (first + 1, start)
        value = between(start, end, max(epoch - first, 0) / (last - first) if end is not start else 0.0)
        return as_kind(value, self.integers[name]) if name in self.integers else value


def between(start: Any, end: Any, share: float) -> Any:
    """The value at a share of the way from one to another, where both are numbers or lists of numbers."""
    if share == 0:
        return start
    if isinstance(start, list | tuple) and isinstance(end, list | tuple) and len(start) == len(end):
        return [between(one, other, share) for one, other in zip(start, end, strict=True)]
    return start + share * (end - start) if is_number(start) and is_number(end) else start


def as_kind(value: Any, integers: bool) -> Any:
    """A number, or numbers in a list, as the integer that is nearest, half up, or as a float; else the value itself.

    Numbers that differ by 1 or more stay different, which Python's `round` (half to even) does not promise.
    """
    if isinstance(value, list | tuple):
        return type(value)(as_kind(part, integers) for part in value)
    if not is_number(value) or not math.isfinite(value):
        return value
    return math.floor(value + 0.5) if integers else float(value)


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers_of(value: Any) -> list[Any]:
    """A number, or the numbers in a list."""
    if isinstance(value, list | tuple):
        return [number for part in value for number in numbers_of(part)]
    return [value] if is_number(value) else []


def takes_integers(owner: nn.Module, attribute: str) -> bool:
    """Whether a setting is an integer by the type of the constructor's argument; without one, by what it holds."""
    for kind in type(owner).__mro__:
        annotation = str(getattr(vars(kind).get("__init__"), "__annotations__", {}).get(attribute, ""))
        if re.search(r"\b(int|float)\b", annotation):
            return re.search(r"\bfloat\b", annotation) is None
    held = numbers_of(getattr(owner, attribute))
    return bool(held) and all(isinstance(number, int) for number in held)
