"""Table rows that RunSummary prints before a retrieval training."""

from typing import Any

from torch import nn

from lightning_recall._lightning import LightningModule, averages_weights
from lightning_recall.batch import Batch, chunks_of_batch
from lightning_recall.modules.frozen_backbone import find_backbone
from lightning_recall.optimization.step_memory import step_memory
from lightning_recall.recompute.pytrees import batch_size_of

MIB = 2**20


def training_summary(module: LightningModule, loss: nn.Module, chunk_size: Any, batch: Batch) -> dict[str, str]:
    """The loss, the chunks of a batch and the memory of a step, in words.

    All processes must call it: memory is measured with a forward pass, in which SyncBatchNorm communicates.

    Args:
        module: the module to be trained.
        loss: its loss.
        chunk_size: images per forward pass, or "auto".
        batch: the first training batch of this process.
    """
    table = {"loss": type(loss).__name__, **fine_tuning_rows(module)}
    chunks = chunks_of_batch(batch)
    if not chunks:
        return table
    if chunk_size == "auto":
        return {**table, "chunk_size": "auto: measured at the first step"}
    sizes = [min(chunk_size, len(labels)) for _, labels in chunks]
    passes = sum(-(-len(labels) // chunk_size) for _, labels in chunks)
    each = " on each process" if module.trainer.world_size > 1 else ""
    table["chunks"] = f"{passes:,} of at most {max(sizes):,} images{each}"
    inputs = chunks[0][0]
    if batch_size_of(inputs):
        needed = step_memory(module.trainer, module, inputs, max(sizes))
        table["memory"] = (
            f"about {sum(needed) / MIB:,.0f} MiB: {needed.parameters_and_state / MIB:,.0f} for weights, gradients and "
            f"optimizer, {needed.activations / MIB:,.0f} for a chunk"
        )
    return table


def fine_tuning_rows(module: Any) -> dict[str, str]:
    """Mixup, learning rates of the parameter groups, frozen phase and averaging of weights, of those that are used."""
    rows = {} if module.mixup is None else {"mixup": type(module.mixup).__name__}
    trainer = module.trainer
    if getattr(trainer, "optimizers", None):
        rows["learning rate"] = learning_rates(module, trainer.optimizers)
    unfreeze_epoch = module.frozen_backbone.unfreeze_epoch
    if unfreeze_epoch != 0:
        rows["backbone"] = "frozen" if unfreeze_epoch is None else f"frozen before epoch {unfreeze_epoch}, from 0"
    averaging = [callback for callback in getattr(trainer, "callbacks", []) if averages_weights(callback)]
    if averaging:
        rows["weights"] = f"averaged by {type(averaging[0]).__name__}, for validation and checkpoints"
    return rows


def learning_rates(module: Any, optimizers: list[Any]) -> str:
    """Highest learning rates of the schedule, by part of the module: "backbone 1e-06 to 0.0001, head 0.001"."""
    backbone = find_backbone(module)
    parts = {"backbone": backbone, "head": module.embedder, "loss": module.loss, "other": module}
    name_of = {id(p): name for name, part in reversed(parts.items()) if part is not None for p in part.parameters()}
    rates: dict[str, set[float]] = {name: set() for name in parts}
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        rate = float(group.get("max_lr", group.get("initial_lr", group["lr"])))
        for name in {name_of.get(id(p), "other") for p in group["params"]}:
            rates[name].add(rate)
    different = set().union(*rates.values())
    if len(different) == 1:
        return f"{different.pop():.3g}"
    spans = {name: sorted({min(values), max(values)}) for name, values in rates.items() if values}
    return ", ".join(f"{name} {' to '.join(f'{value:.3g}' for value in span)}" for name, span in spans.items())
