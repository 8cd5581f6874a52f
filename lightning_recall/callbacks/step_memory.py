"""What a training step will need, measured on a few images before the first one."""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recall._lightning import LightningModule, Trainer, isolate_rng

MEASURED_ROWS = 4  # of a chunk: BatchNorm wants more than one


class StepMemory(NamedTuple):
    """Bytes of a step: weights with their gradients and what the optimizer keeps of them, and a chunk's activations."""

    weights: float
    activations: float


def step_memory(trainer: Trainer, pl_module: LightningModule, inputs: Any, chunk_rows: int) -> StepMemory:
    """What a step needs about, on each device: without the loss, the embeddings and what an allocator keeps.

    Args:
        trainer: tells precision and optimizers.
        pl_module: its forward takes the inputs of a chunk.
        inputs: a tensor (b, ...), or mappings, lists and tuples of such, of which a few rows are passed forward; random
            numbers and buffers are as before.
        chunk_rows: images in one pass.
    """
    few = first_rows(inputs, pl_module.device)
    rows = min(num_rows(inputs), MEASURED_ROWS)
    buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
    own = [*pl_module.parameters(), *buffers.values()]
    with isolate_rng(), torch.enable_grad(), trainer.precision_plugin.forward_context():
        saved = saved_bytes(lambda: torch.func.functional_call(pl_module, buffers, (few,)), own)
    return StepMemory(weight_bytes(trainer, pl_module), saved / rows * chunk_rows)


def first_rows(inputs: Any, device: torch.device) -> Any:
    """A copy of inputs with the first rows of each tensor, on a device; whatever is no tensor stays as it is."""
    if isinstance(inputs, Tensor):
        return inputs[:MEASURED_ROWS].to(device, copy=True)
    if isinstance(inputs, Mapping):
        rows: Any = copy(inputs)
        for name, part in inputs.items():
            rows[name] = first_rows(part, device)
        return rows
    if isinstance(inputs, list | tuple):
        parts = [first_rows(part, device) for part in inputs]
        return type(inputs)(*parts) if hasattr(inputs, "_fields") else type(inputs)(parts)
    return inputs


def num_rows(inputs: Any) -> int:
    """Rows b of the first tensor in inputs; 0 if they hold none."""
    if isinstance(inputs, Tensor):
        return len(inputs)
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, list | tuple) else ()
    return next((rows for rows in map(num_rows, parts) if rows), 0)


def saved_bytes(forward: Callable[[], Any], own: list[Tensor]) -> int:
    """Bytes that a forward pass keeps for backward, its `own` tensors left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in known:
            kept[pointer] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def weight_bytes(trainer: Trainer, pl_module: LightningModule) -> int:
    """Bytes of weights, gradients, and the averages that AdamW (two) or SGD with momentum (one) keep of each."""
    total = sum(p.numel() * p.element_size() for p in pl_module.parameters())
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            averages = 2 if "betas" in group else int(bool(group.get("momentum")))
            total += sum((1 + averages) * p.numel() * p.element_size() for p in group["params"] if p.requires_grad)
    return total
