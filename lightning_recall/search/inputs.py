"""What metrics and searches take, and the one error for what they do not."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""types of embeddings"""


def check_tensors(**given: Any) -> None:
    """Refuses lists, arrays and whatever else is no tensor; None passes.

    Raises:
        ValueError: naming the argument.
    """
    for name, values in given.items():
        if values is not None and not isinstance(values, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(values).__name__}: give torch.as_tensor({name}).")


def check_batch(embeddings: Tensor, labels: Tensor) -> None:
    """Refuses a batch whose shapes or types do not fit.

    Raises:
        ValueError: in that case.
    """
    check_tensors(embeddings=embeddings, labels=labels)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "embeddings must be of shape (B, D) and labels (B,), "
            f"got {tuple(embeddings.shape)} and {tuple(labels.shape)}."
        )
    check_floats(embeddings=embeddings)
    check_integers(len(labels), labels=labels)


def check_matrices(**given: Tensor) -> None:
    """Refuses what is no matrix (N, D) of floating point numbers, and matrices of different widths D.

    Raises:
        ValueError: in that case.
    """
    check_tensors(**given)
    shapes = [tuple(rows.shape) for rows in given.values()]
    if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) > 1:
        names, found = " and ".join(given), " and ".join(map(str, shapes))
        raise ValueError(f"{names} must be matrices (N, D) of one width D, got {found}.")
    check_floats(**given)


def check_floats(**given: Tensor) -> None:
    """Refuses types that are no floating point of 16, 32 or 64 bits."""
    for name, values in given.items():
        if values.dtype not in FLOATS:
            raise ValueError(f"{name} must be floating point, of 16, 32 or 64 bits, got {values.dtype}.")


def check_integers(count: int, **given: Tensor | None) -> None:
    """Refuses columns that are not `count` integers; None passes."""
    check_tensors(**given)
    for name, values in given.items():
        if values is None:
            continue
        if values.shape != (count,):
            raise ValueError(f"{name} must be of shape ({count},), one for each item, got {tuple(values.shape)}.")
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, got {values.dtype}.")


def check_flags(count: int, **given: Tensor | None) -> None:
    """Refuses columns that are not `count` bools; None passes."""
    check_tensors(**given)
    for name, values in given.items():
        if values is not None and (values.shape != (count,) or values.dtype != torch.bool):
            found = f"{tuple(values.shape)} and {values.dtype}"
            raise ValueError(f"{name} must be of shape ({count},), one for each item, and bool, got {found}.")


def check_finite(embeddings: Tensor) -> None:
    """Refuses NaN and infinity."""
    if not torch.isfinite(embeddings).all():
        raise ValueError("embeddings hold NaN or infinity: the network has diverged or its input is broken.")


def check_same_columns(states: Mapping[str, list[Tensor]], given: Mapping[str, Tensor | None], first: bool) -> None:
    """Refuses a column that an earlier batch had and this one has not, or the reverse.

    Args:
        states: what earlier batches gave.
        given: what this one gives.
        first: whether there was no earlier batch.
    """
    for name, values in given.items():
        if not first and (values is not None) != (len(states[name]) > 0):
            raise ValueError(f"Give {name} with every batch, or with none.")
