"""Tensor functions used by several packages."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Converts to float32; float64 stays float64.

    >>> at_least_float32(torch.ones(2, dtype=torch.float16)).dtype
    torch.float32
    """
    return values if values.dtype == torch.float64 else values.float()


def holds_integers(values: Tensor) -> bool:
    """Whether the dtype of a tensor is an integer type; bool is none.

    >>> holds_integers(torch.zeros(2, dtype=torch.uint8)), holds_integers(torch.zeros(2, dtype=torch.bool))
    (True, False)
    """
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def arange_within_groups(counts: Tensor) -> Tensor:
    """Returns the concatenation of arange(count) for every count.

    Args:
        counts: (G,) integers of at least 0.

    Returns:
        (counts.sum(),) int64.

    >>> arange_within_groups(torch.tensor([2, 0, 3]))
    tensor([0, 1, 0, 1, 2])
    """
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.arange(len(starts), device=counts.device) - starts


def numpy_arange_within_groups(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """NumPy version of `arange_within_groups`; several times faster than torch for few groups.

    >>> numpy_arange_within_groups(np.array([2, 0, 3]))
    array([0, 1, 0, 1, 2])
    """
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
