"""Smooth step functions that count the items ranked above a positive, with their derivatives."""

import math
from typing import Protocol

import torch
from torch import Tensor

from lightning_recall.losses.positives import QueryPositives


class SmoothHeaviside(Protocol):
    """Smooth count of the items ranked above each positive, using a smooth Heaviside step."""

    def __call__(
        self, differences: Tensor, positive_similarities: Tensor, positives: QueryPositives, with_derivatives: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the smooth number of items ranked above each positive, and the derivatives.

        Args:
            differences: (q, P, N) s_qz - s_qx in units of the temperature; may be overwritten.
            positive_similarities: (q, P) s_qx.
            positives: the queries and their positives.
            with_derivatives: whether to return the derivatives with respect to the differences.

        Returns:
            Sums (q, P) over all items except x itself, and the derivatives (q, P, N) or None.
        """


class Sigmoid:
    """Sigmoid(t) for every item, as in Patel et al., CVPR 2022; t is the similarity difference over the temperature."""

    def __call__(
        self, differences: Tensor, positive_similarities: Tensor, positives: QueryPositives, with_derivatives: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `SmoothHeaviside.__call__`."""
        above = differences.sigmoid_()
        sums = above.sum(2).sub_(0.5)  # the sum includes x itself, with sigmoid(0) = 0.5
        derivatives = torch.addcmul(above, above, above, value=-1, out=above) if with_derivatives else None  # g - g^2
        return sums, derivatives


class SupHeaviside:
    """Upper bound of the Heaviside step whose gradient does not vanish for large similarity differences.

    With t the similarity difference and tau the temperature, a negative contributes

        sigmoid(t / tau)               for t <= 0
        sigmoid(t / tau) + start       for 0 < t <= delta
        slope (t - delta) + offset     for t > delta

    A positive contributes 1 if t > 0, else 0, without gradient, so positives do not push each other away.

    Source: Ramzi, Audebert, Rambour, Araujo, Bitot, Thome, "Optimization of Rank Losses for Image Retrieval", 2023
    (arXiv 2309.08250).

    Args:
        temperature: tau, above 0.
        delta: similarity difference above which the function is linear, above 0.
        slope: slope of the linear part, above 0.
        start: jump of the function at t = 0, at least 0. With 0.5 the function is an upper bound of the
            step.
        offset: value of the linear part at delta. None: the value at which the function is continuous.
    """

    def __init__(self, temperature: float, delta: float, slope: float, start: float, offset: float | None) -> None:
        if not (temperature > 0 and delta > 0 and slope > 0 and start >= 0):
            raise ValueError(
                "rank_temperature, delta and slope must be above 0, and start at least 0, "
                f"got {temperature}, {delta}, {slope} and {start}."
            )
        self.scaled_delta = delta / temperature  # delta and slope in units of the temperature
        self.scaled_slope = slope * temperature
        self.start = start
        self.offset = 1 / (1 + math.exp(-self.scaled_delta)) + start if offset is None else offset

    def __call__(
        self, differences: Tensor, positive_similarities: Tensor, positives: QueryPositives, with_derivatives: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `SmoothHeaviside.__call__`."""
        is_higher, is_linear = differences > 0, differences > self.scaled_delta
        linear = differences.sub(self.scaled_delta).mul_(self.scaled_slope).add_(self.offset)
        contributions = differences.sigmoid_()  # (q, P, N)
        derivatives = None
        if with_derivatives:
            derivatives = (contributions - contributions * contributions).masked_fill_(is_linear, self.scaled_slope)
        contributions = torch.where(is_linear, linear, contributions.add_(is_higher, alpha=self.start))
        queries, positive_indices, valid = positives
        # padded entries hold the index of the query, which is never counted
        positive_indices = torch.where(valid, positive_indices, queries[:, None])
        columns = positive_indices[:, None, :].expand(-1, positive_indices.shape[1], -1)  # (q, P, P)
        positive_is_higher = (positive_similarities[:, None, :] > positive_similarities[:, :, None]) & valid[:, None, :]
        contributions.scatter_(2, columns, positive_is_higher.to(contributions.dtype))
        if derivatives is not None:
            derivatives.scatter_(2, columns, 0.0)
        return contributions.sum(2), derivatives
