"""Computes one optimizer's gradients without changing those of others; unscales and averages them."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_recall._lightning import LightningModule, Trainer, callbacks_of


def zero_gradients(module: LightningModule, optimizers: Sequence[Any]) -> None:
    """Zeroes the gradients of optimizers, calling the same hooks as automatic optimization."""
    for optimizer in optimizers:
        for callback in callbacks_of(module.trainer):
            callback.on_before_zero_grad(module.trainer, module, optimizer.optimizer)
        module.on_before_zero_grad(optimizer.optimizer)
        module.optimizer_zero_grad(module.current_epoch, module.trainer.fit_loop.batch_idx, optimizer.optimizer)


def add_gradients(
    module: LightningModule, loss: Tensor, parameters: Sequence[nn.Parameter], retain_graph: bool = False
) -> None:
    """Adds the gradient of a loss to the `.grad` of the given parameters only.

    The gradient is averaged over the processes and unscaled, because the loss scale of mixed precision may change
    before the step. The reduction of DistributedDataParallel is switched off, because it expects the gradients of all
    parameters.

    Args:
        module: its `manual_backward` is called.
        loss: the loss of this process.
        parameters: the parameters that receive the gradient.
        retain_graph: keep the graph for the backward pass of another loss.
    """
    accumulated = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    model = module.trainer.strategy.model
    with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
        module.manual_backward(loss, retain_graph=retain_graph, inputs=list(parameters))
    scale = gradient_scale(module.trainer, module.device)
    if scale is not None:
        scale_gradients(parameters, 1 / scale)
    if module.trainer.world_size > 1:
        average_gradients(parameters)
    for parameter, before in zip(parameters, accumulated, strict=True):
        if before is not None:
            parameter.grad = before if parameter.grad is None else before.add_(parameter.grad)


def add_shared_gradients(
    module: LightningModule, loss: Tensor, optimizers: Sequence[Any], has_frozen_parameters: bool
) -> None:
    """Adds the gradient of the loss of all optimizers, averaged over the processes.

    Args:
        module: its `manual_backward` is called.
        loss: the loss of this process.
        optimizers: all optimizers.
        has_frozen_parameters: whether parameters were frozen after DistributedDataParallel was set up. It would wait
            for their gradients, so its reduction is switched off.
    """
    if module.trainer.world_size == 1 or not has_frozen_parameters:
        module.manual_backward(loss)
        return
    model = module.trainer.strategy.model
    with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
        module.manual_backward(loss)
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    average_gradients([p for p in parameters if p.requires_grad])


def gradient_scale(trainer: Trainer, device: torch.device) -> Tensor | None:
    """The factor of mixed precision's gradient scaler, on the device; None if there is no scaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return None
    scale: Tensor = scaler.scale(torch.ones((), device=device))  # unlike get_scale, does not synchronise the device
    return scale


def scale_gradients(parameters: Sequence[nn.Parameter], factor: Tensor) -> None:
    """Multiplies gradients in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def rescale_gradients(module: LightningModule, parameters: Sequence[nn.Parameter], scale: Tensor | None) -> None:
    """Scales gradients by mixed precision's current scale, as the optimizer step expects.

    Args:
        module: the module in training.
        parameters: their gradients are scaled.
        scale: factor by which the gradients are already multiplied; None: they are unscaled.
    """
    current = gradient_scale(module.trainer, module.device)
    if current is not None:
        scale_gradients(parameters, current if scale is None else current / scale)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replaces gradients by their mean over all processes; a gradient that no process has stays None.

    All processes must pass the same parameters. A parameter may lack a gradient on some processes.
    """
    for dtype in sorted({p.dtype for p in parameters}, key=str):  # in the same order on all processes
        group = [p for p in parameters if p.dtype == dtype]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
        is_used = gradients[0].new_tensor([p.grad is not None for p in group])
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), is_used])
        distributed.all_reduce(flat)
        sizes = [*(p.numel() for p in group), len(group)]
        *means, used = torch.split(flat / distributed.get_world_size(), sizes)
        for parameter, mean, fraction in zip(group, means, used.tolist(), strict=True):
            parameter.grad = mean.view_as(parameter).clone() if fraction > 0 else None
