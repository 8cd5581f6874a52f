"""Input validation for searches and metrics: shapes and dtypes of embeddings, labels and other per-item tensors."""

import torch
from torch import Tensor

from lightning_recall.checks import check_tensors
from lightning_recall.tensors import holds_integers

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""allowed dtypes of embeddings"""


def check_batch(embeddings: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless embeddings (B, D) are floating point and labels (B,) are integers."""
    check_tensors(embeddings=embeddings, labels=labels)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "embeddings must be of shape (B, D) and labels (B,), "
            f"got {tuple(embeddings.shape)} and {tuple(labels.shape)}."
        )
    check_float_dtypes(embeddings=embeddings)
    check_integers(len(labels), labels=labels)


def check_matrices(**tensors: Tensor) -> None:
    """Raises ValueError unless all arguments are floating-point matrices (N, D) with the same D."""
    check_tensors(**tensors)
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) > 1:
        names, sizes = " and ".join(tensors), " and ".join(map(str, shapes))
        raise ValueError(f"{names} must be matrices (N, D) with the same D, got {sizes}.")
    check_float_dtypes(**tensors)


def check_float_dtypes(**tensors: Tensor) -> None:
    """Raises ValueError unless all arguments are float16, bfloat16, float32 or float64."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOAT_DTYPES:
            raise ValueError(f"{name} must be floating point, of 16, 32 or 64 bits, got {tensor.dtype}.")


def check_integers(count: int, **tensors: Tensor | None) -> None:
    """Raises ValueError unless each argument is an integer tensor (count,); None is allowed."""
    check_tensors(**tensors)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.shape != (count,):
            raise ValueError(f"{name} must be of shape ({count},), one for each item, got {tuple(tensor.shape)}.")
        if not holds_integers(tensor):
            raise ValueError(f"{name} must be integers, got {tensor.dtype}.")


def check_bools(count: int, **tensors: Tensor | None) -> None:
    """Raises ValueError unless each argument is a bool tensor (count,); None is allowed."""
    check_tensors(**tensors)
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.shape != (count,) or tensor.dtype != torch.bool):
            raise ValueError(
                f"{name} must be of shape ({count},), one for each item, and bool, got {tuple(tensor.shape)} and "
                f"{tensor.dtype}."
            )
