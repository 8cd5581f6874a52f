"""How much an item counts as more similar than a positive: smooth forms of the comparison, with their slopes."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Positives(NamedTuple):
    """Who should find whom: queries (Q,), their positives (Q, P), padded, and which are not padding (Q, P) bool."""

    queries: Tensor
    items: Tensor
    valid: Tensor


class Comparison(Protocol):
    """Counts the items ahead of each positive."""

    def __call__(
        self, differences: Tensor, at_positives: Tensor, part: Positives, with_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """How many items count as ahead, and the slopes.

        Args:
            differences: (q, P, N) s_qz - s_qx in units of the temperature; may be overwritten.
            at_positives: (q, P) s_qx.
            part: the queries and their positives.
            with_slope: whether the derivatives by the differences are wanted.

        Returns:
            Sums (q, P) over all items but x itself, and the slopes (q, P, N) or None.
        """


class Sigmoid:
    """sigmoid(t) for every item, the paper's: t is the difference of similarity over the temperature."""

    def __call__(
        self, differences: Tensor, at_positives: Tensor, part: Positives, with_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `Comparison`."""
        above = differences.sigmoid_()
        sums = above.sum(2).sub_(0.5)  # x itself stands in it with sigmoid(0) = 0.5
        slopes = torch.addcmul(above, above, above, value=-1, out=above) if with_slope else None  # g - g^2
        return sums, slopes


class SupHeaviside:
    """An upper bound of the true comparison whose slope does not vanish for items far ahead.

    With t the difference of similarity and tau the temperature, an item of another class counts

        sigmoid(t / tau)               for t <= 0
        sigmoid(t / tau) + start       for 0 < t <= delta
        slope (t - delta) + offset     for t > delta

    and one of the query's class counts 1 if t > 0, else 0, without a gradient: positives do not push each other away.

    Source: Ramzi, Audebert, Rambour, Araujo, Bitot, Thome, "Optimization of Rank Losses for Image Retrieval", 2023
    (arXiv 2309.08250).

    Args:
        temperature: tau, above 0.
        delta: difference of similarity from which it is linear, above 0.
        slope: of the linear part, above 0.
        start: added where the item is ahead, from 0; 0.5 bounds the true comparison from above.
        offset: where the linear part begins; None: where the curved one ends.
    """

    def __init__(self, temperature: float, delta: float, slope: float, start: float, offset: float | None) -> None:
        if not (temperature > 0 and delta > 0 and slope > 0 and start >= 0):
            raise ValueError(
                "rank_temperature, delta and slope must be above 0 and start from 0, "
                f"got {temperature}, {delta}, {slope} and {start}."
            )
        self.knee = delta / temperature  # all in units of the temperature
        self.steepness = slope * temperature
        self.start = start
        self.offset = 1 / (1 + math.exp(-self.knee)) + start if offset is None else offset

    def __call__(
        self, differences: Tensor, at_positives: Tensor, part: Positives, with_slope: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As `Comparison`."""
        ahead, far = differences > 0, differences > self.knee
        linear = differences.sub(self.knee).mul_(self.steepness).add_(self.offset)
        counted = differences.sigmoid_()  # (q, P, N)
        slopes = (counted - counted * counted).masked_fill_(far, self.steepness) if with_slope else None
        counted = torch.where(far, linear, counted.add_(ahead, alpha=self.start))
        own = torch.where(part.valid, part.items, part.queries[:, None])  # padding: the query, which never counts
        columns = own[:, None, :].expand(-1, own.shape[1], -1)  # (q, P, P)
        better = (at_positives[:, None, :] > at_positives[:, :, None]) & part.valid[:, None, :]
        counted.scatter_(2, columns, better.to(counted.dtype))
        if slopes is not None:
            slopes.scatter_(2, columns, 0.0)
        return counted.sum(2), slopes
