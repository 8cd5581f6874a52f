"""Settings and progress of one optimizer among several."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from lightning_recall._lightning import DDPStrategy, Trainer, uses_static_graph

SHARED = ""
"""key for all optimizers together, if `optimizer_settings` is empty"""


@dataclass(frozen=True)
class OptimizerSettings:
    """When an optimizer steps, and how its gradient is clipped.

    Args:
        gradient_clip_val: maximum norm, or value, of the gradient of the optimizer's parameters; None: no clipping.
        gradient_clip_algorithm: whether to clip the "norm" of the whole gradient, or the "value" of each element.
        accumulate_grad_batches: number of used batches whose gradients are averaged for one step; at least 1. The last
            step of an epoch may have fewer.
        every_n_batches: use every n-th batch of the training and ignore the losses of the others; at least 1.

    Raises:
        ValueError: for numbers out of range.
    """

    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    accumulate_grad_batches: int = 1
    every_n_batches: int = 1

    def __post_init__(self) -> None:
        if self.gradient_clip_val is not None and not self.gradient_clip_val > 0:
            raise ValueError(
                f"gradient_clip_val must be above 0, or None for no clipping, got {self.gradient_clip_val}."
            )
        if self.gradient_clip_algorithm not in ("norm", "value"):
            algorithm = self.gradient_clip_algorithm
            raise ValueError(f'gradient_clip_algorithm must be "norm" or "value", got {algorithm!r}.')
        for name in ("accumulate_grad_batches", "every_n_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def num_steps(self, epochs: int, batches: int) -> int:
        """Number of optimizer steps in `epochs` epochs of `batches` batches."""
        used = [epoch * batches // self.every_n_batches for epoch in range(epochs + 1)]  # before each epoch
        return sum(-(-(after - before) // self.accumulate_grad_batches) for before, after in pairwise(used))


@dataclass
class OptimizerProgress:
    """Progress of an optimizer.

    Attributes:
        accumulated_batches: number of batches whose gradients have been accumulated since the last step.
        steps: number of steps of a named optimizer; stays 0 for `SHARED`, because `global_step` counts its steps.
        scheduled_epochs: number of epochs for which the epoch schedulers have stepped.
    """

    accumulated_batches: int = 0
    steps: int = 0
    scheduled_epochs: int = 0


def check_losses(losses: dict[str, Any], settings: dict[str, OptimizerSettings]) -> None:
    """Raises ValueError for a loss without an optimizer, or for a single loss although the optimizers are named."""
    names = list(settings) or [SHARED]
    unknown = [name for name in losses if name not in names]
    if unknown == [SHARED]:
        raise ValueError(f"Pass a dict of losses to optimize(), with keys from optimizer_settings: {names}.")
    if unknown:
        known = f"has {names}" if settings else "is empty: pass a single loss"
        raise ValueError(f"There are losses for {unknown}, but optimizer_settings {known}.")


def check_optimizers(
    trainer: Trainer, settings: dict[str, OptimizerSettings], module_settings: OptimizerSettings
) -> None:
    """Checks that every optimizer has settings, and that no two share a parameter.

    Args:
        trainer: the Trainer, after configure_optimizers.
        settings: optimizer name -> settings, in optimizer order.
        module_settings: settings from the arguments of the module.

    Raises:
        ValueError: if the numbers of settings and optimizers differ, a parameter belongs to two optimizers, the
            arguments of the module are set too, static_graph is on, or several processes use a strategy other than DDP,
            because such a strategy may shard parameters.
    """
    optimizers = trainer.optimizers
    if uses_static_graph(trainer.strategy):
        raise ValueError("optimizer_settings does not support static_graph=True, which expects one backward per batch.")
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise ValueError(
            f'optimizer_settings needs strategy="ddp" on several processes, got {type(trainer.strategy).__name__}.'
        )
    if len(settings) != len(optimizers):
        raise ValueError(
            f"optimizer_settings names {len(settings)} optimizers ({', '.join(settings)}), but configure_optimizers "
            f"returns {len(optimizers)}."
        )
    if module_settings != OptimizerSettings():
        raise ValueError(
            "gradient_clip_val, gradient_clip_algorithm and accumulate_grad_batches of the module have no effect on "
            "optimizers with their own settings: set them in optimizer_settings."
        )
    owners: dict[int, str] = {}
    for name, optimizer in zip(settings, optimizers, strict=True):
        for parameter in parameters_of(optimizer):
            owner = owners.setdefault(id(parameter), name)
            if owner != name:
                raise ValueError(
                    f"A parameter of shape {tuple(parameter.shape)} belongs to the optimizers {owner!r} and {name!r}: "
                    "with optimizer_settings each parameter must have one."
                )


def parameters_of(optimizer: Any) -> list[Any]:
    """The trainable parameters of an optimizer."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
