"""Estimates the memory of a training step from a forward pass on a few images."""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recall._lightning import LightningModule, Trainer, isolate_rng

NUM_MEASURED = 4  # images: BatchNorm needs more than one


class StepMemory(NamedTuple):
    """Bytes of a step: parameters, gradients and optimizer state; activations of one chunk."""

    parameters_and_state: float
    activations: float


def step_memory(trainer: Trainer, pl_module: LightningModule, inputs: Any, chunk_size: int) -> StepMemory:
    """Approximate memory of a step per device, excluding loss, embeddings and allocator overhead.

    Restores the RNG state and leaves the module's buffers unchanged.

    Args:
        trainer: its precision and optimizers are used.
        pl_module: its forward takes the inputs of a chunk.
        inputs: a tensor (b, ...), or nested mappings, lists and tuples of tensors. The first few items are passed
            through forward.
        chunk_size: images per forward pass.
    """
    few = first_items(inputs, pl_module.device)
    measured = min(batch_size_of(inputs), NUM_MEASURED)
    buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
    excluded = [*pl_module.parameters(), *buffers.values()]
    with isolate_rng(), torch.enable_grad(), trainer.precision_plugin.forward_context():
        saved = saved_bytes(lambda: torch.func.functional_call(pl_module, buffers, (few,)), excluded)
    return StepMemory(parameters_and_state_bytes(trainer, pl_module), saved / measured * chunk_size)


def first_items(inputs: Any, device: torch.device) -> Any:
    """Copies the first items of each tensor to a device; other values are unchanged."""
    if isinstance(inputs, Tensor):
        return inputs[:NUM_MEASURED].to(device, copy=True)
    if isinstance(inputs, Mapping):
        items: Any = copy(inputs)
        for name, part in inputs.items():
            items[name] = first_items(part, device)
        return items
    if isinstance(inputs, list | tuple):
        parts = [first_items(part, device) for part in inputs]
        return type(inputs)(*parts) if hasattr(inputs, "_fields") else type(inputs)(parts)
    return inputs


def batch_size_of(inputs: Any) -> int:
    """Batch size of the first tensor; 0 if there is none."""
    if isinstance(inputs, Tensor):
        return len(inputs)
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, list | tuple) else ()
    return next((size for size in map(batch_size_of, parts) if size), 0)


def saved_bytes(forward: Callable[[], Any], excluded: list[Tensor]) -> int:
    """Bytes saved for backward, excluding parameters and buffers."""
    known = {tensor.untyped_storage().data_ptr() for tensor in excluded}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in known:
            kept[pointer] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def parameters_and_state_bytes(trainer: Trainer, pl_module: LightningModule) -> int:
    """Bytes of weights, gradients and optimizer state (two moments for AdamW, one for SGD with momentum)."""
    total = sum(p.numel() * p.element_size() for p in pl_module.parameters())
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            moments = 2 if "betas" in group else int(bool(group.get("momentum")))
            total += sum((1 + moments) * p.numel() * p.element_size() for p in group["params"] if p.requires_grad)
    return total
