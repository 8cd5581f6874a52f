"""A large batch in the memory of one chunk: embeddings with gradients, activations recomputed chunk by chunk."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from lightning_recall.recompute.first_pass import FirstPass

Tree = Any
"""A tensor, or a dict, tuple or list of them, nested as you like."""


def chunked_forward(
    encoder: Callable[[Any], Tree],
    inputs: Tree,
    chunk_size: int,
    keep_last: int = 1,
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
        encoder: a module, a method of one, or a function. It maps inputs of b rows to embeddings (b, D), or to a dict
            or tuple of such, each row on its own.
        inputs: a tensor (N, ...), or a dict, tuple or other nest of tensors with N rows each. A list is a batch in
            chunks already, each of them a tensor or nest; a DataLoader makes one of pairs, too, of which
            `tuple(batch)` is meant. What is longer than `chunk_size` is split evenly.
        chunk_size: largest number of rows in one pass of the encoder, from 1.
        keep_last: how many chunks, the last ones, keep their activations, from 1: more memory, less to recompute. With
            all of them kept a step costs what a plain one does.
        device: where the encoder is; chunks that are elsewhere go there one at a time, in both passes. None: they are
            there.

    Returns:
        What the encoder gives, of all N rows, in the order of the inputs.

    Raises:
        ValueError: for a `chunk_size` or `keep_last` below 1, no inputs, inputs of unequal length, an encoder that does
            not give a row per row or changes its mind between chunks, a list whose chunks are of different kinds, and,
            in backward, an encoder whose recomputation comes out otherwise.

    >>> encoder = torch.nn.Linear(3, 2)
    >>> chunked_forward(encoder, torch.ones(10, 3), chunk_size=4).shape
    torch.Size([10, 2])
    """
    if chunk_size < 1 or keep_last < 1:
        raise ValueError(f"chunk_size and keep_last must be at least 1, got {chunk_size} and {keep_last}.")
    given = inputs if isinstance(inputs, list) else [inputs]
    check_alike(given)
    chunks = [part for chunk in given for part in split(chunk, chunk_size)]
    if not chunks:
        raise ValueError("There is nothing to embed: inputs hold no rows.")
    recomputed = max(len(chunks) - keep_last, 0) if torch.is_grad_enabled() else 0

    # Backward starts with the last chunks: kept, they are gone before another is recomputed.
    outputs: list[Tree] = []
    changing: set[nn.Module] | None = None
    for chunk in chunks[:recomputed]:
        first = FirstPass(encoder, changing)
        outputs.append(recomputable(encoder, chunk, device, first))
        changing = {module for module, _ in first.buffers} if changing is None else changing
    return concatenate(outputs + [embed(encoder, chunk, device) for chunk in chunks[recomputed:]])


def recomputable(
    encoder: Callable[[Any], Tree], chunk: Tree, device: torch.device | str | None, first: FirstPass
) -> Tree:
    """Embeds one chunk and forgets the activations; their recomputation is compared with this first pass."""
    kept: list[Tensor] = []

    def run(chunk: Tree, _: Tensor | None) -> Tree:
        if not first.over:
            with first.recorded():
                output = embed(encoder, chunk, device)
            kept.extend(leaf.detach() for leaf in tree_flatten(output)[0])
            return output
        with first.replayed():
            output = embed(encoder, chunk, device)
            check_same(kept, tree_flatten(output)[0])
            return output

    # A tensor on the encoder's device among the arguments makes checkpoint keep that device's random state.
    anchor = None if device is None else torch.empty(0, device=device)
    with set_checkpoint_early_stop(False):  # else it would stop before there is anything to compare
        return checkpoint(run, chunk, anchor, use_reentrant=False)


def embed(encoder: Callable[[Any], Tree], chunk: Tree, device: torch.device | str | None) -> Tree:
    """What the encoder gives for a chunk, on the device, a row per row."""
    rows = num_rows(chunk)
    if device is not None:
        chunk = tree_map(lambda leaf: leaf.to(device, non_blocking=True), chunk)
    output = encoder(chunk)
    for leaf in tree_flatten(output)[0]:
        if not isinstance(leaf, Tensor) or leaf.shape[:1] != (rows,):
            got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(f"The encoder must give one row for each of the {rows} rows of a chunk, got {got}.")
    return output


def num_rows(chunk: Tree) -> int:
    """Rows of a tensor or nest of tensors."""
    return len(tree_flatten(chunk)[0][0])


def check_alike(chunks: list[Tree]) -> None:
    """Raises ValueError if chunks hold different things, such as images in one and labels in another."""
    kinds = {
        str(tree_map(lambda leaf: f"{leaf.dtype} {leaf.ndim}-d" if isinstance(leaf, Tensor) else type(leaf), chunk))
        for chunk in chunks
    }
    if len(kinds) > 1:
        raise ValueError(
            f"A list is a batch in chunks, which must be alike, got {' and '.join(sorted(kinds))}. If its entries are "
            "parts of one input, such as a pair that a DataLoader has made a list, give tuple(batch)."
        )


def split(chunk: Tree, chunk_size: int) -> list[Tree]:
    """Cuts a chunk evenly into parts of at most `chunk_size` rows."""
    leaves, spec = tree_flatten(chunk)
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0:
            raise ValueError(f"inputs must be tensors (N, ...), in dicts or tuples if need be, got {leaf!r:.80}.")
    lengths = {len(leaf) for leaf in leaves}
    if len(lengths) > 1:
        raise ValueError(f"All tensors of a chunk must have as many rows, got {sorted(lengths)}.")
    count = -(-max(lengths, default=0) // chunk_size)
    parts = zip(*(leaf.tensor_split(count) for leaf in leaves), strict=True) if count else ()
    return [tree_unflatten(list(part), spec) for part in parts]


def concatenate(outputs: list[Tree]) -> Tree:
    """Joins the outputs of chunks, tensor by tensor."""
    leaves, specs = zip(*map(tree_flatten, outputs), strict=True)
    kinds = {tuple((leaf.shape[1:], leaf.dtype) for leaf in output) for output in leaves}
    if len(kinds) > 1 or any(spec != specs[0] for spec in specs):
        shapes = sorted({str([tuple(leaf.shape[1:]) for leaf in output]) for output in leaves})
        raise ValueError(
            f"The encoder must give rows of one shape and dtype for all chunks, got {' and '.join(shapes)}."
        )
    return tree_unflatten([torch.cat(parts) for parts in zip(*leaves, strict=True)], specs[0])


def check_same(first: list[Tensor], again: list[Tensor]) -> None:
    """Raises ValueError unless a recomputation gave, up to rounding, what the first pass did."""
    for kept, leaf in zip(first, again, strict=True):
        if not close(kept, leaf):
            raise ValueError(
                "The encoder gave other embeddings when a chunk was recomputed, so the gradient would be wrong: it "
                "draws random numbers from a generator of its own, or changes parameters or attributes as it runs. "
                "Draw with torch's, numpy's or Python's global generator, keep state in buffers, or raise keep_last to "
                "the number of chunks, so that nothing is recomputed."
            )


def close(kept: Tensor, leaf: Tensor) -> bool:
    """Whether two tensors are the same but for rounding; NaN is the same as NaN."""
    if kept.numel() == 0 or not (kept.is_floating_point() or kept.is_complex()):
        return torch.equal(kept, leaf)
    scale = float(kept.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(leaf, kept, rtol=0, atol=torch.finfo(kept.dtype).eps ** 0.5 * scale, equal_nan=True)
