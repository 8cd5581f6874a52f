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
        mean and variance: (B, C, ...); where the window has no valid pixel, the value itself and 0.

    >>> mean, variance = local_moments(torch.tensor([[[0.0, 0.0, 1.0]]]), None, [0.25, 0.5, 0.25])
    >>> mean.squeeze(), variance.squeeze()
    (tensor([0.0000, 0.2500, 0.7500]), tensor([0.0000, 0.1875, 0.1875]))
    """
    mean, weight = values, valid
    variance: Tensor | None = None
    for dim in range(2, values.ndim):
        shares: list[float] | list[Tensor] = window
        if weight is not None:
            weights = [share * part for share, part in zip(window, shifted(weight, dim, len(window)), strict=True)]
            weight = torch.stack(weights).sum(0)
            scale = 1 / weight.clamp_min(torch.finfo(weight.dtype).tiny)
            shares = [part * scale for part in weights]
        mean, variance = moments_along(mean, variance, dim, shares)
    return mean, torch.zeros_like(mean) if variance is None else variance


def moments_along(
    mean: Tensor, variance: Tensor | None, dim: int, shares: list[float] | list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean and variance over the neighbours along a dimension, from the mean and variance of each of them.

    Args:
        mean: (B, C, ...).
        variance: (B, C, ...), or None: 0.
        dim: the dimension.
        shares: weight of each neighbour, a number or (B, 1, ...).
    """
    centre = len(shares) // 2
    distances = [part - mean for part in shifted(mean, dim, len(shares))]  # exactly 0 in flat areas
    offset = torch.zeros_like(mean)
    for k, share in enumerate(shares):
        if k != centre:
            add_product(offset, distances[k], share)
    total = torch.zeros_like(mean)
    for distance, share in zip(distances, shares, strict=True):
        deviation = distance.sub_(offset)
        add_product(total, deviation * deviation, share)
    if variance is not None:
        for part, share in zip(shifted(variance, dim, len(shares)), shares, strict=True):
            add_product(total, part, share)
    return mean + offset, total


def add_product(total: Tensor, values: Tensor, share: float | Tensor) -> None:
    """Adds values times share to `total` in place."""
    if isinstance(share, Tensor):
        total.addcmul_(values, share)
    else:
        total.add_(values, alpha=share)


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
