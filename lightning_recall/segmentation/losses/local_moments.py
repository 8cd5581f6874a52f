"""Mean and variance in a Gaussian window around each pixel."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def gaussian_window(size: int, std: float) -> list[float]:
    """Weights of a window of one dimension, with sum 1.

    >>> [round(weight, 4) for weight in gaussian_window(3, 1.5)]
    [0.3078, 0.3844, 0.3078]
    """
    weights = [math.exp(-((i - size // 2) ** 2) / (2 * std**2)) for i in range(size)]
    return [weight / math.fsum(weights) for weight in weights]


def local_moments(values: Tensor, valid: Tensor | None, window: list[float]) -> tuple[Tensor, Tensor]:
    """Mean and variance in a window around each pixel, the product of windows of one dimension.

    Pixels outside the image have the value of the nearest pixel inside. One dimension follows the other: the variance
    is the mean of the variances of the rows plus the variance of the means of the rows. All terms are squares, so that
    it is never below 0 and exactly 0 in flat areas; E[x^2] - E[x]^2 in fp32 is neither.

    Args:
        values: (B, C, ...) floating point, with at least one spatial dimension.
        valid: (B, 1, ...) as 0 and 1 of the same dtype: pixels with 0 have no weight, and the weights of the others
            are divided by their sum. None: all pixels are valid.
        window: weights with sum 1, of odd length.

    Returns:
        mean and variance: (B, C, ...); 0 where the window has no valid pixel.

    >>> mean, variance = local_moments(torch.tensor([[[0.0, 0.0, 1.0]]]), None, [0.25, 0.5, 0.25])
    >>> mean.squeeze(), variance.squeeze()
    (tensor([0.0000, 0.2500, 0.7500]), tensor([0.0000, 0.1875, 0.1875]))
    """
    mean, variance, weight = values, torch.zeros_like(values), valid
    for dim in range(2, values.ndim):
        means, variances = list(shifted(mean, dim, len(window))), list(shifted(variance, dim, len(window)))
        if weight is None:
            mean = sum_of([w * m for w, m in zip(window, means, strict=True)])
            terms = [w * (v + (m - mean).square()) for w, m, v in zip(window, means, variances, strict=True)]
            variance = sum_of(terms)
            continue
        weights = [w * part for w, part in zip(window, shifted(weight, dim, len(window)), strict=True)]
        weight = sum_of(weights)
        divisor = weight.clamp_min(torch.finfo(weight.dtype).tiny)
        mean = sum_of([w * m for w, m in zip(weights, means, strict=True)]) / divisor
        terms = [w * (v + (m - mean).square()) for w, m, v in zip(weights, means, variances, strict=True)]
        variance = sum_of(terms) / divisor
    return mean, variance


def sum_of(terms: list[Tensor]) -> Tensor:
    """Sum of tensors of one shape."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def shifted(values: Tensor, dim: int, size: int) -> Iterator[Tensor]:
    """The neighbours of each pixel along a dimension, from -(size // 2) to size // 2; the edges are repeated."""
    radius, length = size // 2, values.shape[dim]
    first, last = values.narrow(dim, 0, 1), values.narrow(dim, length - 1, 1)
    padded = torch.cat([first] * radius + [values] + [last] * radius, dim)
    return (padded.narrow(dim, start, length) for start in range(size))
