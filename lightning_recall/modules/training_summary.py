"""Table rows that RunSummary prints before a retrieval training."""

from typing import Any

from torch import nn

from lightning_recall._lightning import LightningModule
from lightning_recall.batch import Batch, chunks_of_batch
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
    table = {"loss": type(loss).__name__}
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
