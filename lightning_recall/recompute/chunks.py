"""Embeds a large batch in chunks and recomputes their activations in backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from lightning_recall.checks import check_integer
from lightning_recall.recompute.first_pass import FirstPassState
from lightning_recall.recompute.pytrees import (
    PyTree,
    batch_size_of,
    check_output_lengths,
    check_same_structure,
    concatenate,
    map_tensors,
    mappings_to_dicts,
    split,
    tensors_of,
)


def chunked_forward(
    embedder: Callable[[Any], PyTree],
    inputs: PyTree,
    chunk_size: int,
    keep_chunks: int = 1,
    device: torch.device | str | None = None,
) -> Any:
    """Embeds a batch in chunks, storing the activations of only one chunk at a time.

    The result is part of the autograd graph. Backward recomputes each chunk, so a loss over the whole batch has its
    exact gradient. This costs one extra forward pass of every chunk except the last. Works in automatic and manual
    optimization, and under autocast.

    The recomputation restores the random state and buffers of the first pass, so dropout and stochastic depth use the
    same masks, `random` and `numpy.random` draw the same numbers, and BatchNorm running statistics are updated once.
    BatchNorm in train mode normalises each chunk by its own statistics.

    Args:
        embedder: a module, a method of a module, or a function. It maps inputs of b rows to embeddings (b, D), or to a
            dict or tuple of such tensors; rows must be independent, and an entry may be None.
        inputs: a tensor (N, ...), or a pytree of tensors with N rows each; an entry may be None. Mappings other than
            dict, such as BatchEncoding, are converted to dicts. A list is treated as pre-split chunks. DataLoader
            collates pairs into lists: pass tuple(batch) for those. Inputs longer than `chunk_size` are split evenly.
        chunk_size: largest number of rows in one pass of the embedder, at least 1.
        keep_chunks: number of chunks at the end whose activations are stored, at least 1. Larger values use more memory
            and recompute less. If all chunks are stored, nothing is recomputed.
        device: where the embedder is; chunks on another device are moved there one at a time, in forward and backward.
            None: inputs are already there.

    Returns:
        The embedder's output for all N rows, in input order.

    Raises:
        ValueError: if chunk_size or keep_chunks is not a positive integer; if inputs are empty, not tensors or of
            unequal length; if the chunks of a list differ in structure; if the embedder's output does not have one row
            per input row, or its structure differs between chunks; and, in backward, if the recomputation differs from
            the first pass.

    >>> embedder = torch.nn.Linear(3, 2)
    >>> chunked_forward(embedder, torch.ones(10, 3), chunk_size=4).shape
    torch.Size([10, 2])
    """
    check_integer("chunk_size", chunk_size, 1)
    check_integer("keep_chunks", keep_chunks, 1)
    batches = [mappings_to_dicts(batch) for batch in (inputs if isinstance(inputs, list) else [inputs])]
    check_same_structure(batches)
    chunks = [chunk for batch in batches for chunk in split(batch, chunk_size)]
    if not chunks:
        raise ValueError("inputs are empty: they hold no rows to embed.")
    num_recomputed = max(len(chunks) - keep_chunks, 0) if torch.is_grad_enabled() else 0

    # Backward starts with the last chunks, so their stored activations are freed before any chunk is recomputed.
    outputs: list[PyTree] = []
    modules_with_changed_buffers: set[nn.Module] | None = None
    for chunk in chunks[:num_recomputed]:
        first_pass = FirstPassState(embedder, modules_with_changed_buffers)
        outputs.append(checkpointed_embed(embedder, chunk, device, first_pass))
        if modules_with_changed_buffers is None:
            modules_with_changed_buffers = {module for module, _ in first_pass.buffers}
    return concatenate(outputs + [embed(embedder, chunk, device) for chunk in chunks[num_recomputed:]])


def checkpointed_embed(
    embedder: Callable[[Any], PyTree], chunk: PyTree, device: torch.device | str | None, first_pass: FirstPassState
) -> PyTree:
    """Embeds one chunk without storing activations; backward checks that recomputing gives the same output."""
    first_output: list[Tensor] = []

    def run(chunk: PyTree, _: Tensor | None) -> PyTree:
        if not first_pass.done:
            with first_pass.record():
                output = embed(embedder, chunk, device)
            first_output.extend(tensor.detach() for tensor in tensors_of(output))
            return output
        with first_pass.replay():
            output = embed(embedder, chunk, device)
            check_same(first_output, tensors_of(output))
            return output

    # checkpoint saves the RNG state of the devices of its arguments, so pass a tensor on the embedder's device.
    on_device = None if device is None else torch.empty(0, device=device)
    with set_checkpoint_early_stop(False):  # early stopping would skip the output that check_same compares
        return checkpoint(run, chunk, on_device, use_reentrant=False)


def embed(embedder: Callable[[Any], PyTree], chunk: PyTree, device: torch.device | str | None) -> PyTree:
    """Moves a chunk to the device, embeds it, and checks that the output has one row per input row."""
    if device is not None:
        chunk = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), chunk)
    output = mappings_to_dicts(embedder(chunk))
    check_output_lengths(output, batch_size_of(chunk))
    return output


def check_same(first: list[Tensor], recomputed: list[Tensor]) -> None:
    """Raises ValueError unless the recomputed output equals that of the first pass up to rounding."""
    for expected, actual in zip(first, recomputed, strict=True):
        if not all_close(expected, actual):
            raise ValueError(
                "Recomputing a chunk gave different embeddings, so the gradient would be wrong. The embedder may use "
                "its own random generator, or modify parameters, attributes or its input. Draw with the global "
                "generator of torch, numpy or Python, keep state in buffers, or raise keep_chunks to the number of "
                "chunks, so that nothing is recomputed."
            )


def all_close(expected: Tensor, actual: Tensor) -> bool:
    """Whether two tensors are equal up to rounding; NaN equals NaN."""
    if expected.numel() == 0 or not (expected.is_floating_point() or expected.is_complex()):
        return torch.equal(expected, actual)
    scale = float(expected.abs().nan_to_num(0, 0, 0).max())
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * scale
    return torch.allclose(actual, expected, rtol=0, atol=tolerance, equal_nan=True)
