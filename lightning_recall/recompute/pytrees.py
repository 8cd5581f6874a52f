"""Pytrees of tensors: dicts, tuples and lists of tensors (N, ...), split into chunks and concatenated again."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

PyTree = Any
"""A tensor, or a dict, tuple or list of them, arbitrarily nested; any tensor may be None."""


def mappings_to_dicts(tree: Any) -> PyTree:
    """Replaces every Mapping that is not a dict, such as the BatchEncoding of a tokenizer, by a dict."""

    def to_dict(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):  # mappings registered with pytree are not leaves
            return {key: mappings_to_dicts(value) for key, value in leaf.items()}
        return leaf

    return tree_map(to_dict, tree)


def tensors_of(tree: PyTree) -> list[Tensor]:
    """Lists the tensors of a pytree."""
    return [leaf for leaf in tree_flatten(mappings_to_dicts(tree))[0] if isinstance(leaf, Tensor)]


def map_tensors(function: Callable[[Tensor], Tensor], tree: PyTree) -> PyTree:
    """Applies `function` to every tensor of a pytree."""
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, mappings_to_dicts(tree))


def batch_size_of(tree: PyTree) -> int:
    """Returns the length of the first dimension of the tensors in a pytree; 0 if it has no tensors."""
    tensors = tensors_of(tree)
    return len(tensors[0]) if tensors else 0


def split(tree: PyTree, chunk_size: int) -> list[PyTree]:
    """Splits a pytree evenly into parts of at most `chunk_size` rows; None is repeated in each part.

    Raises:
        ValueError: for tensors without dimensions or with different numbers of rows, and for entries that are neither a
            tensor nor None.
    """
    leaves, spec = tree_flatten(tree)
    for leaf in leaves:
        if leaf is not None and (not isinstance(leaf, Tensor) or leaf.ndim == 0):
            got = "a tensor without dimensions" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(
                f"inputs must be tensors (N, ...), optionally in dicts or tuples, got {got}; convert lists and arrays "
                "with torch.as_tensor."
            )
    lengths = {len(leaf) for leaf in leaves if leaf is not None}
    if len(lengths) > 1:
        raise ValueError(f"All tensors of a chunk must have the same number of rows, got {sorted(lengths)}.")
    count = -(-max(lengths, default=0) // chunk_size)
    parts = [[None] * count if leaf is None else leaf.tensor_split(count) for leaf in leaves] if count else []
    return [tree_unflatten(list(part), spec) for part in zip(*parts, strict=True)]


def check_same_structure(chunks: list[PyTree]) -> None:
    """Raises ValueError if chunks differ in structure, dtype or number of dimensions."""
    kinds = {
        str(tree_map(lambda leaf: f"{leaf.dtype} {leaf.ndim}-d" if isinstance(leaf, Tensor) else type(leaf), chunk))
        for chunk in chunks
    }
    if len(kinds) > 1:
        raise ValueError(
            "A list is treated as chunks of one batch, which must have the same structure and dtypes, got "
            f"{' and '.join(sorted(kinds))}. If the list is one input, such as a pair collated by DataLoader, pass "
            "tuple(batch)."
        )


def check_output_lengths(output: PyTree, rows: int) -> None:
    """Raises ValueError unless all outputs are tensors with as many rows as the input; None is allowed."""
    leaves = [leaf for leaf in tree_flatten(output)[0] if leaf is not None]
    wrong = [leaf for leaf in leaves if not isinstance(leaf, Tensor) or leaf.shape[:1] != (rows,)]
    if wrong or not leaves:
        leaf = wrong[0] if wrong else None
        got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
        raise ValueError(f"The embedder must return one row per input row ({rows}), got {got}.")


def concatenate(outputs: list[PyTree]) -> PyTree:
    """Concatenates the outputs of chunks, tensor by tensor.

    Raises:
        ValueError: if their structures, dtypes or trailing dimensions differ.
    """
    leaves, specs = zip(*map(tree_flatten, outputs), strict=True)
    kinds = {tuple(leaf if leaf is None else (leaf.shape[1:], leaf.dtype) for leaf in output) for output in leaves}
    if len(kinds) > 1 or any(spec != specs[0] for spec in specs):
        shapes = sorted({str([leaf if leaf is None else tuple(leaf.shape[1:]) for leaf in part]) for part in leaves})
        raise ValueError(
            "The embedder's output must have the same trailing dimensions and dtype for all chunks, got "
            f"{' and '.join(shapes)}."
        )
    joined = [None if parts[0] is None else torch.cat(parts) for parts in zip(*leaves, strict=True)]
    return tree_unflatten(joined, specs[0])
