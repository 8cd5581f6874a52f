"""How much the structure of a prediction differs from that of the truth, in a Gaussian window around each pixel."""

import math

import torch
from torch import Tensor

C4 = 0.01  # of the paper, as restated by Jadon, 2020

Shares = list[list[float | Tensor]]
"""For each spatial dimension the weight of each neighbour, a number or (B, 1, ...); see `window_shares`."""


def structural_error(truth: Tensor, probability: Tensor, shares: Shares) -> Tensor:
    """The error e of `StructuralSimilarityLoss`, also at pixels that are not valid.

    Args:
        truth: (B, C, ...) floating point, 0 or 1.
        probability: (B, C, ...), from 0 to 1.
        shares: weights of the neighbours.

    Returns:
        (B, C, ...) of at least 0.

    >>> edge = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    >>> structural_error(edge, 1 - edge, window_shares(gaussian_window(3, 1.5), None, 1)).squeeze()
    tensor([0.0000, 1.3054, 1.3054, 0.0000])
    """
    mean = local_mean(truth, shares)
    expected = normalize(truth, mean, mean - mean * mean)  # p (1 - p) is the variance of zeros and ones
    return expected.sub_(normalize(probability, *local_moments(probability, shares))).abs_()


def normalize(values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """(values - mean + C4) / (std + C4)."""
    if variance.requires_grad:  # the derivative of the root at 0 is infinite: flat windows get 0
        flat = variance == 0
        std = variance.masked_fill(flat, 1).sqrt().masked_fill(flat, 0)
    else:
        std = variance.clamp_min_(0).sqrt_()
    return (values - mean).add_(C4) / (std + C4)


def local_moments(values: Tensor, shares: Shares) -> tuple[Tensor, Tensor]:
    """Mean and variance in a window around each pixel, the product of windows of one dimension.

    Pixels outside the image have the value of the nearest pixel inside. One dimension follows the other: the variance
    is the mean of the variances of the rows plus the variance of the means of the rows. All terms are squares, so that
    it is never below 0 and exactly 0 in flat areas; E[x^2] - E[x]^2 in fp32 is neither.

    Args:
        values: (B, C, ...) floating point, with at least one spatial dimension.
        shares: weights of the neighbours.

    Returns:
        mean and variance: (B, C, ...); where the window has no valid pixel, the value itself and 0.

    >>> mean, variance = local_moments(torch.tensor([[[0.0, 0.0, 1.0]]]), [[0.25, 0.5, 0.25]])
    >>> mean.squeeze(), variance.squeeze()
    (tensor([0.0000, 0.2500, 0.7500]), tensor([0.0000, 0.1875, 0.1875]))
    """
    mean = values
    variance: Tensor | None = None
    for dim, weights in enumerate(shares, start=2):
        distances = distances_along(mean, dim, len(weights))
        offset = weighted_sum(distances, weights)
        deviations = [-offset if part is None else part.sub_(offset) for part in distances]
        total = torch.zeros_like(values)
        for part, weight in zip(deviations, weights, strict=True):
            if isinstance(weight, Tensor):
                total.addcmul_(part * part, weight)
            else:
                total.addcmul_(part, part, value=weight)
        if variance is not None:
            total.add_(weighted_sum(distances_along(variance, dim, len(weights)), weights)).add_(variance)
        mean, variance = mean + offset, total
    return mean, torch.zeros_like(values) if variance is None else variance


def local_mean(values: Tensor, shares: Shares) -> Tensor:
    """The mean of `local_moments`, (B, C, ...)."""
    for dim, weights in enumerate(shares, start=2):
        values = values + weighted_sum(distances_along(values, dim, len(weights)), weights)
    return values


def distances_along(values: Tensor, dim: int, size: int) -> list[Tensor | None]:
    """Neighbours along a dimension minus the pixel, from -(size // 2) to size // 2; None for the pixel itself."""
    neighbours = shifted(values, dim, size)
    return [None if k == size // 2 else part - values for k, part in enumerate(neighbours)]


def weighted_sum(parts: list[Tensor | None], weights: list[float | Tensor]) -> Tensor:
    """Sum of parts times weights; None counts as 0. Weights with sum 1 keep flat areas exactly flat."""
    total: Tensor | None = None
    for part, weight in zip(parts, weights, strict=True):
        if part is None:
            continue
        if total is None:
            total = part * weight
        elif isinstance(weight, Tensor):
            total.addcmul_(part, weight)
        else:
            total.add_(part, alpha=weight)
    assert total is not None, "a window has at least 3 pixels"
    return total


def window_shares(window: list[float], valid: Tensor | None, dims: int) -> Shares:
    """Weights of the neighbours for each of the spatial dimensions.

    Args:
        window: weights with sum 1, of odd length.
        valid: (B, 1, ...) as 0 and 1: pixels with 0 have no weight, and the weights of the others are divided by
            their sum. None: all pixels are valid.
        dims: number of spatial dimensions.
    """
    if valid is None:
        return [[*window] for _ in range(dims)]
    shares: Shares = []
    weight = valid
    for dim in range(2, 2 + dims):
        weights = [share * part for share, part in zip(window, shifted(weight, dim, len(window)), strict=True)]
        weight = torch.stack(weights).sum(0)
        scale = 1 / weight.clamp_min(torch.finfo(weight.dtype).tiny)
        shares.append([part * scale for part in weights])
    return shares


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
