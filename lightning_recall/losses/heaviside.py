"""Smooth step functions that count the items ranked above a positive, with their derivatives."""

import math
from typing import Protocol

import torch
from torch import Tensor

from lightning_recall.losses.positives import QueryPositives


class SmoothHeaviside(Protocol):
    """Counts the items ranked above each positive by a smooth form of the Heaviside step."""

    def __call__(
        self, differences: Tensor, at_positives: Tensor, query_chunk: QueryPositives, with_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the smooth number of items ranked above each positive, and the derivatives.

        Args:
            differences: (q, P, N) s_qz - s_qx in units of the temperature; may be overwritten.
            at_positives: (q, P) s_qx.
            query_chunk: the queries and their positives.
            with_slope: whether to return the derivatives with respect to the differences.

        Returns:
            Sums (q, P) over all items except x itself, and the derivatives (q, P, N) or None.
        """


class Sigmoid:
    """The paper's sigmoid(t) for every item, with t the similarity difference divided by the temperature."""

    def __call__(
        self, differences: Tensor, at_positives: Tensor, query_chunk: QueryPositives, with_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `SmoothHeaviside.__call__`."""
        above = differences.sigmoid_()
        sums = above.sum(2).sub_(0.5)  # the sum includes x itself, with sigmoid(0) = 0.5
        slopes = torch.addcmul(above, above, above, value=-1, out=above) if with_slope else None  # g - g^2
        return sums, slopes


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
        start: constant added where t > 0, at least 0. With 0.5 the function is an upper bound of the step.
        offset: value of the linear part at delta. None: makes the function continuous at delta.
    """

    def __init__(self, temperature: float, delta: float, slope: float, start: float, offset: float | None) -> None:
        if not (temperature > 0 and delta > 0 and slope > 0 and start >= 0):
            raise ValueError(
                "rank_temperature, delta and slope must be above 0, and start at least 0, "
                f"got {temperature}, {delta}, {slope} and {start}."
            )
        self.scaled_delta = delta / temperature  # all in units of the temperature
        self.scaled_slope = slope * temperature
        self.start = start
        self.offset = 1 / (1 + math.exp(-self.scaled_delta)) + start if offset is None else offset

    def __call__(
        self, differences: Tensor, at_positives: Tensor, query_chunk: QueryPositives, with_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `SmoothHeaviside.__call__`."""
        ahead, is_linear = differences > 0, differences > self.scaled_delta
        linear = differences.sub(self.scaled_delta).mul_(self.scaled_slope).add_(self.offset)
        counted = differences.sigmoid_()  # (q, P, N)
        slopes = (counted - counted * counted).masked_fill_(is_linear, self.scaled_slope) if with_slope else None
        counted = torch.where(is_linear, linear, counted.add_(ahead, alpha=self.start))
        queries, items, valid = query_chunk
        positives = torch.where(valid, items, queries[:, None])  # padding points at the query, which is never counted
        columns = positives[:, None, :].expand(-1, positives.shape[1], -1)  # (q, P, P)
        better = (at_positives[:, None, :] > at_positives[:, :, None]) & valid[:, None, :]
        counted.scatter_(2, columns, better.to(counted.dtype))
        if slopes is not None:
            slopes.scatter_(2, columns, 0.0)
        return counted.sum(2), slopes
