"""Settings of a module that change in the course of a training."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn


class ScheduledSettings(Callback):
    """Sets attributes of the module as epochs begin: weights of losses, temperatures, how much is mixed.

    Between two epochs that are named, numbers, and lists of them, change in a straight line from epoch to epoch; other
    values, such as None, stay until the next. Before the first and after the last they stay. A resumed training goes on
    with the values of its epoch.

    Args:
        settings: name of an attribute -> {epoch: value}. The name is a path from the module, such as
            `loss.rank_temperature`, `loss.weights`, `loss.losses.0.k_temperature` or `mixup.max_virtual_per_class`.

    Raises:
        ValueError: for no settings, epochs below 0, and, when the training starts, an attribute that is not there
            or is a parameter, a buffer, a module or a property that can only be read.

    >>> schedule = ScheduledSettings({"loss.rank_temperature": {0: 0.05, 10: 0.01}})
    >>> [round(schedule.value("loss.rank_temperature", epoch), 3) for epoch in (0, 5, 10, 20)]
    [0.05, 0.03, 0.01, 0.01]
    """

    def __init__(self, settings: dict[str, dict[int, Any]]) -> None:
        if not settings or not all(settings.values()) or min(min(points) for points in settings.values()) < 0:
            raise ValueError(f"settings must hold a value from some epoch (from 0) for each attribute, got {settings}.")
        self.settings = {name: dict(sorted(points.items())) for name, points in settings.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses attributes that are not there or cannot be set."""
        for name in self.settings:
            owner, _, attribute = name.rpartition(".")
            try:
                value = getattr(pl_module.get_submodule(owner), attribute)
            except AttributeError:
                raise ValueError(f"ScheduledSettings: {type(pl_module).__name__} has no attribute {name}.") from None
            try:
                setattr(pl_module.get_submodule(owner), attribute, value)
            except AttributeError:
                value = pl_module  # a property that can only be read
            if isinstance(value, Tensor | nn.Module):
                raise ValueError(
                    f"ScheduledSettings: {name} is no setting, but a part of the module: it cannot be set."
                )

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
        if not after or epoch <= first:
            return start
        last, end = after[0]
        return between(start, end, (epoch - first) / (last - first))


def between(start: Any, end: Any, share: float) -> Any:
    """The value at a share of the way from one to another, where both are numbers or lists of numbers."""
    if isinstance(start, list | tuple) and isinstance(end, list | tuple) and len(start) == len(end):
        return [between(one, other, share) for one, other in zip(start, end, strict=True)]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (start, end))
    return start + share * (end - start) if numbers else start
