"""How much the structure of a prediction differs from that of the truth, in a Gaussian window around each pixel."""

import math

import torch
from torch import Tensor

C4 = 0.01  # of the paper, as restated by Jadon, 2020


def structural_error(truth: Tensor, probability: Tensor, valid: Tensor | None, window: list[float]) -> Tensor:
    """The error e of `StructuralSimilarityLoss`, also at pixels that are not valid.

    Args:
        truth: (B, C, ...) floating point, 0 or 1.
        probability: (B, C, ...), from 0 to 1.
        valid: (B, 1, ...) as 0 and 1 of the same dtype, or None: all pixels are valid.
        window: weights of the window in each dimension, see `gaussian_window`.

    Returns:
        (B, C, ...) of at least 0.

    >>> edge = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    >>> structural_error(edge, 1 - edge, None, gaussian_window(3, 1.5)).squeeze()
    tensor([0.0000, 1.3056, 1.3056, 0.0000])
    """
    return normalize(truth, valid, window).sub_(normalize(probability, valid, window)).abs_()


def normalize(values: Tensor, valid: Tensor | None, window: list[float]) -> Tensor:
    """(values - mean + C4) / (std + C4), with mean and standard deviation in the window around each pixel."""
    mean, variance = local_moments(values, valid, window)
    if variance.requires_grad:  # the derivative of the root at 0 is infinite: flat windows get 0
        flat = variance == 0
        std = variance.masked_fill(flat, 1).sqrt().masked_fill(flat, 0)
    else:
        std = variance.sqrt_()
    return (values - mean).add_(C4) / (std + C4)


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
    mean, variance, weight = values, None, valid
    for dim in range(2, values.ndim):
        move = _one_dimension if weight is None else _one_dimension_of_valid
        mean, variance, weight = move(mean, variance, weight, dim, window)
    return mean, torch.zeros_like(mean) if variance is None else variance


Moments = tuple[Tensor, Tensor | None, Tensor | None]
"""Mean, variance (None: 0) and weight of each pixel."""


def _one_dimension(mean: Tensor, variance: Tensor | None, _: Tensor | None, dim: int, window: list[float]) -> Moments:
    """Moments over one more dimension, from the moments of each pixel."""
    parts = shifted(mean, dim, len(window))
    total = parts[0] * window[0]
    for share, part in zip(window[1:], parts[1:], strict=True):
        total.add_(part, alpha=share)
    spread = torch.zeros_like(total)
    for share, part in zip(window, parts, strict=True):
        distance = part - total
        spread.addcmul_(distance, distance, value=share)
    if variance is not None:
        for share, part in zip(window, shifted(variance, dim, len(window)), strict=True):
            spread.add_(part, alpha=share)
    return total, spread, None


def _one_dimension_of_valid(
    mean: Tensor, variance: Tensor | None, weight: Tensor, dim: int, window: list[float]
) -> Moments:
    """`_one_dimension` with a weight of each pixel (B, 1, ...)."""
    size = len(window)
    weights = [share * part for share, part in zip(window, shifted(weight, dim, size), strict=True)]
    total_weight = torch.stack(weights).sum(0)
    scale = 1 / total_weight.clamp_min(torch.finfo(weight.dtype).tiny)
    shares = [part * scale for part in weights]
    parts = shifted(mean, dim, size)
    total = parts[0] * shares[0]
    for share, part in zip(shares[1:], parts[1:], strict=True):
        total.addcmul_(share, part)
    spread = torch.zeros_like(total)
    for share, part in zip(shares, parts, strict=True):
        distance = part - total
        spread.addcmul_(distance * share, distance)
    if variance is not None:
        for share, part in zip(shares, shifted(variance, dim, size), strict=True):
            spread.addcmul_(share, part)
    return total, spread, total_weight


def shifted(values: Tensor, dim: int, size: int) -> list[Tensor]:
    """The neighbours of each pixel along a dimension, from -(size // 2) to size // 2; the edges are repeated."""
    radius, length = size // 2, values.shape[dim]
    first, last = values.narrow(dim, 0, 1), values.narrow(dim, length - 1, 1)
    padded = torch.cat([first] * radius + [values] + [last] * radius, dim)
    return [padded.narrow(dim, start, length) for start in range(size)]


def gaussian_window(size: int, std: float) -> list[float]:
    """Weights of a window of one dimension, with sum 1.

    >>> [round(weight, 4) for weight in gaussian_window(3, 1.5)]
    [0.3078, 0.3844, 0.3078]
    """
    weights = [math.exp(-((i - size // 2) ** 2) / (2 * std**2)) for i in range(size)]
    return [weight / math.fsum(weights) for weight in weights]
