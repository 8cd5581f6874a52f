"""Checks of a retrieval training: its strategy, its batches and the checkpoint that it resumes."""

from typing import Any

import torch
from torch import Tensor

from lightning_recall._lightning import (
    BatchSizeFinder,
    DeepSpeedStrategy,
    FSDPStrategy,
    LightningModule,
    ModelParallelStrategy,
    Trainer,
    batch_size_attribute,
    callbacks_of,
    uses_static_graph,
)
from lightning_recall.batch import Batch, chunks_of_batch, type_and_shape
from lightning_recall.gather import gather_rows
from lightning_recall.recompute.pytrees import tensors_of


def check_batch_size_finder(trainer: Trainer) -> None:
    """Raises ValueError for a BatchSizeFinder of the batch that the loss compares."""
    finders = [callback for callback in callbacks_of(trainer) if isinstance(callback, BatchSizeFinder)]
    if trainer.state.fn == "fit" and "batch_size" in map(batch_size_attribute, finders):
        raise ValueError(
            "BatchSizeFinder would change the loss, which compares all images of a batch: choose batch_size for "
            'retrieval quality, not for memory. chunk_size limits memory: chunk_size="auto" finds the largest that '
            "fits."
        )


def check_strategy(strategy: object) -> None:
    """Raises ValueError for strategies that the chunk recomputation does not support."""
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
        raise ValueError(
            f"{type(strategy).__name__} shards the parameters, which is not supported by the chunk recomputation: use "
            'strategy="ddp"; a smaller chunk_size saves memory.'
        )
    if uses_static_graph(strategy) and torch.__version__ < "2.8":
        raise ValueError("static_graph gives wrong gradients before torch 2.8: leave it out, or use a newer torch.")


def checked_chunks(batch: Batch) -> tuple[list[Any], Tensor]:
    """Inputs of a training batch as a list of chunks, and its labels (b,); a pair is one chunk.

    Raises:
        ValueError: if the batch is neither a pair nor a list of pairs.
    """
    chunks = chunks_of_batch(batch)
    if not chunks:
        raise ValueError(
            f"A training batch must be a pair (inputs, labels), or a list of such chunks, got {type_and_shape(batch)}: "
            "override training_step, or make the loader return pairs."
        )
    inputs, labels = zip(*chunks, strict=True)
    return list(inputs), torch.cat(labels)


def check_different_batches(inputs: list[Any], labels: Tensor, device: torch.device) -> None:
    """Raises ValueError if all processes received the same images and labels; all processes must call it.

    Args:
        inputs: chunks of this process's batch.
        labels: (b,) labels of this process's batch.
        device: the device of this process.
    """
    first = tensors_of(inputs[0])[0]
    values = torch.cat([part.flatten()[:10_000].double().to(device) for part in (first, labels)])
    sums = gather_rows(torch.stack([values.sum(), (values * torch.arange(len(values), device=device)).sum()])[None])
    if bool((sums == sums[0]).all()):
        raise ValueError(
            f"All {len(sums)} processes received the same batch, so each image counts {len(sums)} times: use "
            "ClassBalancedBatchSampler, or another sampler that gives each process its own part."
        )


def check_mixup(weights: dict[str, Any], module: LightningModule) -> None:
    """Raises ValueError if either the checkpoint or this run used mixup, but not both."""
    before, now = (any(key.startswith("mixup.") for key in keys) for keys in (weights, module.state_dict()))
    if module.trainer.state.fn == "fit" and before != now:
        raise ValueError(
            f"The checkpoint was trained {'with' if before else 'without'} mixup, but this run "
            f"{'uses it' if now else 'does not use it'}: resume with the same setting. To change it, start a new "
            "training from the checkpoint's weights: --weights FILE in the command, or "
            "module.load_state_dict(..., strict=False)."
        )
