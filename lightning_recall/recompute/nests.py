"""Nests of tensors: dicts, tuples and lists of tensors (N, ...), cut into chunks and joined again."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Nest = Any
"""A tensor, or a dict, tuple or list of them, nested as you like; None may stand in place of any tensor."""


def with_plain_dicts(nest: Any) -> Nest:
    """The nest, with a dict in place of each other Mapping, such as the BatchEncoding of a tokenizer."""

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):  # those that torch knows are no leaves
            return {key: with_plain_dicts(value) for key, value in leaf.items()}
        return leaf

    return tree_map(plain, nest)


def tensors_of(nest: Nest) -> list[Tensor]:
    """The tensors in a nest."""
    return [leaf for leaf in tree_flatten(with_plain_dicts(nest))[0] if isinstance(leaf, Tensor)]


def map_tensors(function: Callable[[Tensor], Tensor], nest: Nest) -> Nest:
    """The nest, with `function` of each tensor in its place."""
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, with_plain_dicts(nest))


def num_rows(nest: Nest) -> int:
    """Rows N of the tensors in a nest; 0 if there are none."""
    tensors = tensors_of(nest)
    return len(tensors[0]) if tensors else 0


def split(nest: Nest, chunk_size: int) -> list[Nest]:
    """Cuts a nest evenly into parts of at most `chunk_size` rows; None stands in each part.

    Raises:
        ValueError: for tensors without rows or of different numbers of rows, and for what is neither tensor nor None.
    """
    leaves, spec = tree_flatten(nest)
    for leaf in leaves:
        if leaf is not None and (not isinstance(leaf, Tensor) or leaf.ndim == 0):
            got = "a tensor without dimensions" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(
                f"inputs must be tensors (N, ...), in dicts or tuples if need be, got {got}; torch.as_tensor makes "
                "tensors of lists of numbers and of arrays."
            )
    lengths = {len(leaf) for leaf in leaves if leaf is not None}
    if len(lengths) > 1:
        raise ValueError(f"All tensors of a chunk must have as many rows, got {sorted(lengths)}.")
    count = -(-max(lengths, default=0) // chunk_size)
    cut = [[None] * count if leaf is None else leaf.tensor_split(count) for leaf in leaves] if count else []
    return [tree_unflatten(list(part), spec) for part in zip(*cut, strict=True)]


def check_alike(chunks: list[Nest]) -> None:
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


def check_rows(output: Nest, rows: int) -> None:
    """Raises ValueError unless an embedder gave tensors, all with as many rows as its input; None passes."""
    leaves = [leaf for leaf in tree_flatten(output)[0] if leaf is not None]
    wrong = [leaf for leaf in leaves if not isinstance(leaf, Tensor) or leaf.shape[:1] != (rows,)]
    if wrong or not leaves:
        leaf = wrong[0] if wrong else None
        got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
        raise ValueError(f"The embedder must give one row for each of the {rows} rows of a chunk, got {got}.")


def concatenate(outputs: list[Nest]) -> Nest:
    """Joins the outputs of chunks, tensor by tensor.

    Raises:
        ValueError: if they differ in more than their number of rows.
    """
    leaves, specs = zip(*map(tree_flatten, outputs), strict=True)
    kinds = {tuple(leaf if leaf is None else (leaf.shape[1:], leaf.dtype) for leaf in output) for output in leaves}
    if len(kinds) > 1 or any(spec != specs[0] for spec in specs):
        shapes = sorted({str([leaf if leaf is None else tuple(leaf.shape[1:]) for leaf in part]) for part in leaves})
        raise ValueError(
            f"The embedder must give rows of one shape and dtype for all chunks, got {' and '.join(shapes)}."
        )
    joined = [None if parts[0] is None else torch.cat(parts) for parts in zip(*leaves, strict=True)]
    return tree_unflatten(joined, specs[0])
