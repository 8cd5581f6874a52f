"""Optimizer, schedule, clipping and accumulation of each network of DM-ADA."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import nn

from lightning_recall._lightning import LRSchedulerCallable, OptimizerCallable
from lightning_recall.adaptation.inverse_decay import InverseDecayLR
from lightning_recall.checks import check_integer
from lightning_recall.optimization.manual_optimization import ManualOptimization
from lightning_recall.optimization.optimizer_settings import OptimizerSettings
from lightning_recall.optimization.parameter_groups import build_optimizer, split_parameters
from lightning_recall.optimization.schedules import schedule_config

NETWORKS = ("discriminator", "generator", "classifier", "encoder")
"""names of the optimizers, in the order of `configure_optimizers`"""


@dataclass(frozen=True)
class NetworkOptimizer:
    """How one network is optimized. The defaults are those of the released code of DM-ADA.

    Args:
        optimizer: callable that builds the optimizer from the network's parameters; None: Adam with a rate of 5e-4 and
            betas 0.8 and 0.999.
        lr_scheduler: callable that builds a scheduler from the optimizer, or a list of such callables; None: a constant
            learning rate; "released": `InverseDecayLR`, but a constant rate for the generator. For ReduceLROnPlateau
            use `pytorch_lightning.cli.ReduceLROnPlateau`, which has a `monitor` argument, and `lr_interval="epoch"`.
        lr_interval: whether schedulers step after every "epoch" or after every "step" of this optimizer.
        lr_frequency: step the scheduler every `lr_frequency` epochs or steps; at least 1.
        gradient_clip_val: maximum norm, or value, of the gradient of the network's parameters; None: no clipping.
        gradient_clip_algorithm: whether to clip the "norm" of the whole gradient, or the "value" of each element.
        accumulate_grad_batches: number of used batches whose gradients are averaged for one step; at least 1.
        every_n_batches: use every n-th batch, and ignore the network's losses of the others; at least 1.

    Raises:
        ValueError: for numbers out of range.
    """

    optimizer: OptimizerCallable | None = None
    lr_scheduler: LRSchedulerCallable | list[LRSchedulerCallable] | Literal["released"] | None = "released"
    lr_interval: Literal["step", "epoch"] = "step"
    lr_frequency: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    accumulate_grad_batches: int = 1
    every_n_batches: int = 1

    def __post_init__(self) -> None:
        check_integer("lr_frequency", self.lr_frequency, 1)
        if self.lr_interval not in ("step", "epoch"):
            raise ValueError(f'lr_interval must be "step" or "epoch", got {self.lr_interval!r}.')
        if isinstance(self.lr_scheduler, str) and self.lr_scheduler != "released":
            raise ValueError(f'lr_scheduler must be a callable, a list, None or "released", got {self.lr_scheduler!r}.')
        self.settings()  # validates the other arguments

    def settings(self) -> OptimizerSettings:
        """Clipping, accumulation and cadence."""
        return OptimizerSettings(
            self.gradient_clip_val, self.gradient_clip_algorithm, self.accumulate_grad_batches, self.every_n_batches
        )

    def build(self, name: str, network: nn.Module) -> tuple[torch.optim.Optimizer, list[dict[str, Any]]]:
        """The optimizer of the network with this name, and Lightning's dicts of its schedulers."""
        factories: Any = self.lr_scheduler
        if factories == "released":
            factories = None if name == "generator" else InverseDecayLR
        factories = factories if isinstance(factories, Sequence) else [factories]
        groups = split_parameters(network)
        if not groups[0]["params"]:
            raise ValueError(f"The {name} ({type(network).__name__}) has no trainable parameter for its optimizer.")
        optimizer, schedulers = build_optimizer(groups, self.optimizer or released_adam, factories, lr=None)
        return optimizer, [schedule_config(item, self.lr_interval, self.lr_frequency) for item in schedulers]


def released_adam(groups: Any) -> torch.optim.Optimizer:
    """The optimizer of the released code of DM-ADA."""
    return torch.optim.Adam(groups, lr=5e-4, betas=(0.8, 0.999))


def complete_optimizers(given: Mapping[str, NetworkOptimizer] | None) -> dict[str, NetworkOptimizer]:
    """The optimizer of each network, in the order of `NETWORKS`: the given one, or the default.

    Raises:
        ValueError: for another name, or another type.
    """
    given = given or {}
    unknown = [name for name in given if name not in NETWORKS]
    if unknown:
        raise ValueError(f"optimizers must have the keys {', '.join(NETWORKS)}, or some of them, got {unknown}.")
    for name, value in given.items():
        if not isinstance(value, NetworkOptimizer):
            raise ValueError(
                f"optimizers[{name!r}] must be a NetworkOptimizer, got {type(value).__name__}: wrap a callable as "
                "NetworkOptimizer(optimizer=...)."
            )
    return {name: given.get(name, NetworkOptimizer()) for name in NETWORKS}


def check_no_shared_arguments(given: Mapping[str, Any]) -> None:
    """Raises ValueError for an argument of `ManualOptimization` that one optimizer for each network replaces.

    Args:
        given: keyword arguments for `ManualOptimization`. Its default values are allowed, because the command passes
            them all.
    """
    for name, parameter in signature(ManualOptimization.__init__).parameters.items():
        if given.get(name, parameter.default) != parameter.default:
            raise ValueError(
                f"{name} of the module has no effect, because each network has its own optimizer: use `optimizers`, "
                f'such as optimizers={{"encoder": NetworkOptimizer({name}=...)}}, for one or all of '
                f"{', '.join(NETWORKS)}."
            )
