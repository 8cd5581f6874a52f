"""Smooth step functions that count the items ranked above a positive, with their derivatives."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_recall.losses.positives import QueryPositives

MIN_DIFFERENCE = -50.0  # below this, in units of the temperature, sigmoid is at most 2e-22: such items do not count
MAX_SPREAD = 36.0  # of a query's positives: exp(86) does not overflow in fp32, and exp(-86) is not denormal


class SmoothHeaviside(Protocol):
    """Smooth count of the items ranked above each positive, using a smooth Heaviside step."""

    def __call__(
        self, similarities: Tensor, positive_similarities: Tensor, positives: QueryPositives, buffer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the smooth number of items ranked above each positive, and the derivatives.

        Args:
            similarities: (q, N) s_qz in units of the temperature, minus infinity for items that do not count; may be
                overwritten.
            positive_similarities: (q, P) s_qx in units of the temperature.
            positives: the queries and their positives, as columns of `similarities`.
            buffer: (q, P, N) scratch memory; the derivatives may be written to it.

        Returns:
            Sums (q, P) over all items except x itself, and the derivatives (q, P, N) with respect to s_qz - s_qx.
        """


class Sigmoid:
    """Sigmoid(t) for every item, as in Patel et al., CVPR 2022; t is the similarity difference over the temperature."""

    def __call__(
        self, similarities: Tensor, positive_similarities: Tensor, positives: QueryPositives, buffer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `SmoothHeaviside.__call__`."""
        above = sigmoid_of_differences(similarities, positive_similarities, positives.valid, buffer)
        sums = above.sum(2).sub_(0.5)  # the sum includes x itself, with sigmoid(0) = 0.5
        return sums, sigmoid_derivative_(above)


def sigmoid_of_differences(similarities: Tensor, positive_similarities: Tensor, valid: Tensor, out: Tensor) -> Tensor:
    """Sigmoid(s_qz - s_qx), written to `out` (q, P, N); `similarities` (q, N) are overwritten.

    On a CPU, if the similarities of each query's positives are close to each other, this is e_z / (e_z + e_x) with
    e = exp(s - smallest positive): one exponential for each item instead of one for each comparison.
    """
    if similarities.device.type == "cpu":  # a GPU would have to wait for the result of the test
        smallest = positive_similarities.masked_fill(~valid, torch.inf).amin(1, keepdim=True)  # (q, 1)
        exponents = (positive_similarities - smallest).masked_fill_(~valid, 0)  # (q, P)
        if exponents.max() <= MAX_SPREAD:
            items = similarities.sub_(smallest).clamp_(MIN_DIFFERENCE, MAX_SPREAD - MIN_DIFFERENCE).exp_()
            items = F.threshold(items, 1.001 * math.exp(MIN_DIFFERENCE), 0, inplace=True)[:, None, :]  # (q, 1, N)
            torch.add(items, exponents.exp_()[:, :, None], out=out)
            return torch.div(items, out, out=out)
    torch.sub(similarities[:, None, :], positive_similarities[:, :, None], out=out)
    return F.threshold(out, MIN_DIFFERENCE, -torch.inf, inplace=True).sigmoid_()


def sigmoid_derivative_(above: Tensor) -> Tensor:
    """Replaces g = sigmoid(t) by its derivative g (1 - g), without g^2, which may be denormal: slow on some CPUs."""
    derivative: Tensor = torch.ops.aten.sigmoid_backward.grad_input(above.new_ones(()), above, grad_input=above)
    return derivative


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
        self.value_at_delta = 1 / (1 + math.exp(-self.scaled_delta))
        self.offset = self.value_at_delta + start if offset is None else offset

    def __call__(
        self, similarities: Tensor, positive_similarities: Tensor, positives: QueryPositives, buffer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `SmoothHeaviside.__call__`."""
        queries, columns, valid = positives
        # padded entries hold the column of some item: take that of the query, which does not count
        similarities.scatter_(1, torch.where(valid, columns, queries[:, None]), -torch.inf)
        is_higher = (positive_similarities[:, None, :] > positive_similarities[:, :, None]) & valid[:, None, :]
        sums = is_higher.sum(2).to(similarities.dtype)  # (q, P) positives ranked higher
        largest_difference = self.largest_difference(similarities, positive_similarities, valid)
        is_linear = None
        if largest_difference > self.scaled_delta:
            scaled = positive_similarities + self.scaled_delta
            excess = torch.sub(similarities[:, None, :], scaled[:, :, None]).clamp_(min=0)  # (q, P, N)
            sums += self.scaled_slope * excess.sum(2)
            is_linear = excess.sign_()
            # the sums below count value_at_delta + start for each of these items
            sums += (self.offset - self.value_at_delta - self.start) * is_linear.sum(2)
        above = sigmoid_of_differences(similarities, positive_similarities, valid, buffer)
        if largest_difference > 0:
            # a float mask is summed four times faster than a bool one
            sums += self.start * torch.gt(above, 0.5, out=torch.empty_like(above)).sum(2)
        if is_linear is not None:
            above.clamp_(max=self.value_at_delta)
        sums += above.sum(2)
        derivatives = sigmoid_derivative_(above)
        if is_linear is not None:
            derivatives.add_(is_linear, alpha=self.scaled_slope - self.value_at_delta * (1 - self.value_at_delta))
        return sums, derivatives

    def largest_difference(self, similarities: Tensor, positive_similarities: Tensor, valid: Tensor) -> float:
        """The largest difference of a negative and a positive; infinity on a GPU, which would have to wait for it."""
        if similarities.device.type != "cpu":
            return math.inf
        smallest = positive_similarities.masked_fill(~valid, torch.inf).amin(1)  # (q,)
        return (similarities.amax(1) - smallest).max().item()
