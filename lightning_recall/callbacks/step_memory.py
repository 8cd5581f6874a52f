"""What a training step will need, measured on a few images before the first one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

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
        inputs: a tensor (b, ...), or a nest of such, of which a few rows are passed forward; random numbers and buffers
            are as before.
        chunk_rows: images in one pass.
    """
    few = tree_map(lambda leaf: leaf[:MEASURED_ROWS].to(pl_module.device, copy=True), inputs)
    rows = len(tree_flatten(few)[0][0])
    buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
    own = [*pl_module.parameters(), *buffers.values()]
    with isolate_rng(), torch.enable_grad(), trainer.precision_plugin.forward_context():
        saved = saved_bytes(lambda: torch.func.functional_call(pl_module, buffers, (few,)), own)
    return StepMemory(weight_bytes(trainer, pl_module), saved / rows * chunk_rows)


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
        output = forward()  # must live until all is counted
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


def weight_bytes(trainer: Trainer, pl_module: LightningModule) -> int:
    """Bytes of weights, gradients, and the averages that AdamW (two) or SGD with momentum (one) keep of each."""
    total = sum(p.numel() * p.element_size() for p in pl_module.parameters())
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            averages = 2 if "betas" in group else int(bool(group.get("momentum")))
            total += sum((1 + averages) * p.numel() * p.element_size() for p in group["params"] if p.requires_grad)
    return total
