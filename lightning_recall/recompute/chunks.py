"""A large batch in the memory of one chunk: embeddings with gradients, activations recomputed chunk by chunk."""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from lightning_recall.recompute.first_pass import FirstPass
from lightning_recall.recompute.nests import (
    Nest,
    check_alike,
    check_rows,
    concatenate,
    map_tensors,
    num_rows,
    split,
    tensors_of,
    with_plain_dicts,
)


def chunked_forward(
    embedder: Callable[[Any], Nest],
    inputs: Nest,
    chunk_size: int,
    keep_chunks: int = 1,
    device: torch.device | str | None = None,
) -> Any:
    """Embeds a batch in chunks of which only one keeps its activations at a time, then concatenates.

    The result is a part of the graph like any other: backward recomputes each chunk when its turn comes, so that a loss
    over the whole batch has its exact gradient, for one more forward pass of all chunks but the last. Works in
    automatic and manual optimization, and under autocast.

    The recomputation starts where the first pass started and leaves no trace: dropout and drop-path draw the same masks
    again, so do `random` and `numpy.random`, and buffers that a pass changes, such as the running statistics of
    BatchNorm, are changed once. BatchNorm in train mode normalises each chunk by its own statistics.

    Args:
        embedder: a module, a method of one, or a function. It maps inputs of b rows to embeddings (b, D), or to a dict
            or tuple of such, each row on its own; an entry may be None.
        inputs: a tensor (N, ...), or a dict, tuple or other nest of tensors with N rows each; an entry may be None. A
            Mapping that is no dict, such as the BatchEncoding of a tokenizer, reaches the embedder as a dict. A list is
            a batch in chunks already, each of them a tensor or nest; a DataLoader also collates pairs into a list:
            pass `tuple(batch)`. What is longer than `chunk_size` is split evenly.
        chunk_size: largest number of rows in one pass of the embedder, an integer from 1.
        keep_chunks: how many chunks, the last ones, keep their activations, an integer from 1: more memory, less to
            recompute. With all of them kept a step costs what a plain one does.
        device: where the embedder is; chunks that are elsewhere go there one at a time, in both passes. None: they are
            there.

    Returns:
        What the embedder gives, of all N rows, in the order of the inputs.

    Raises:
        ValueError: for a `chunk_size` or `keep_chunks` that is no integer from 1, no inputs, inputs of unequal length or
            that are no tensors, an embedder that does not give a row per row or changes its mind between chunks, a list
            whose chunks are of different kinds, and, in backward, an embedder whose recomputation gives other values.

    >>> embedder = torch.nn.Linear(3, 2)
    >>> chunked_forward(embedder, torch.ones(10, 3), chunk_size=4).shape
    torch.Size([10, 2])
    """
    if not (is_count(chunk_size) and is_count(keep_chunks)):
        raise ValueError(f"chunk_size and keep_chunks must be integers from 1, got {chunk_size!r} and {keep_chunks!r}.")
    given = [with_plain_dicts(chunk) for chunk in (inputs if isinstance(inputs, list) else [inputs])]
    check_alike(given)
    chunks = [part for chunk in given for part in split(chunk, chunk_size)]
    if not chunks:
        raise ValueError("There is nothing to embed: inputs hold no rows.")
    recomputed = max(len(chunks) - keep_chunks, 0) if torch.is_grad_enabled() else 0

    # Backward starts with the last chunks: kept, they are gone before another is recomputed.
    outputs: list[Nest] = []
    changing: set[nn.Module] | None = None
    for chunk in chunks[:recomputed]:
        first = FirstPass(embedder, changing)
        outputs.append(recomputable(embedder, chunk, device, first))
        changing = {module for module, _ in first.buffers} if changing is None else changing
    return concatenate(outputs + [embed(embedder, chunk, device) for chunk in chunks[recomputed:]])


def is_count(value: Any) -> bool:
    """Whether it is an integer from 1, numpy's too."""
    return type(value) is not bool and isinstance(value, Integral) and int(value) >= 1


def recomputable(
    embedder: Callable[[Any], Nest], chunk: Nest, device: torch.device | str | None, first: FirstPass
) -> Nest:
    """Embeds one chunk and forgets the activations; their recomputation is compared with this first pass."""
    kept: list[Tensor] = []

    def run(chunk: Nest, _: Tensor | None) -> Nest:
        if not first.over:
            with first.recorded():
                output = embed(embedder, chunk, device)
            kept.extend(leaf.detach() for leaf in tensors_of(output))
            return output
        with first.replayed():
            output = embed(embedder, chunk, device)
            check_same(kept, tensors_of(output))
            return output

    # A tensor on the embedder's device among the arguments makes checkpoint keep that device's random state.
    anchor = None if device is None else torch.empty(0, device=device)
    with set_checkpoint_early_stop(False):  # else it would stop before there is anything to compare
        return checkpoint(run, chunk, anchor, use_reentrant=False)


def embed(embedder: Callable[[Any], Nest], chunk: Nest, device: torch.device | str | None) -> Nest:
    """What the embedder gives for a chunk, on the device, a row per row."""
    if device is not None:
        chunk = map_tensors(lambda leaf: leaf.to(device, non_blocking=True), chunk)
    output = with_plain_dicts(embedder(chunk))
    check_rows(output, num_rows(chunk))
    return output


def check_same(first: list[Tensor], again: list[Tensor]) -> None:
    """Raises ValueError unless a recomputation gave, up to rounding, what the first pass did."""
    for kept, leaf in zip(first, again, strict=True):
        if not close(kept, leaf):
            raise ValueError(
                "The embedder gave other embeddings when a chunk was recomputed, so the gradient would be wrong: it "
                "draws random numbers from a generator of its own, or changes parameters, attributes or its input "
                "as it runs. Draw with torch's, numpy's or Python's global generator, keep state in buffers, or raise "
                "keep_chunks to the number of chunks, so that nothing is recomputed."
            )


def close(kept: Tensor, leaf: Tensor) -> bool:
    """Whether two tensors are the same but for rounding; NaN is the same as NaN."""
    if kept.numel() == 0 or not (kept.is_floating_point() or kept.is_complex()):
        return torch.equal(kept, leaf)
    scale = float(kept.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(leaf, kept, rtol=0, atol=torch.finfo(kept.dtype).eps ** 0.5 * scale, equal_nan=True)
