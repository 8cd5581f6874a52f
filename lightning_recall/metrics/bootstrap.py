"""Bootstrap intervals of mean scores: classes are resampled, not queries, because queries of a class are alike.

The interval is the bootstrap-t (studentised bootstrap) of a ratio: Davison and Hinkley, "Bootstrap Methods and their
Application", 1997, section 5.2.1, with the standard error of a ratio over clusters: Cochran, "Sampling Techniques",
1977, equation 6.13. `python -m lightning_recall.benchmarks.coverage` measures how often it covers the truth.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_recall.checks import check_integer, check_tensors
from lightning_recall.search.inputs import check_integers
from lightning_recall.search.result import SearchResult

MIN_CLASSES = 20
MIN_ON_EACH_SIDE = 5  # classes above and below the mean; with fewer, many resamples have none, and no spread
MIN_DIFFERENT = 10  # classes in which two models differ
FIXED_POINT = 2**40  # scores are summed as integers: no order changes the sum, and equal scores deviate by exactly 0
CHUNK = 2**18  # weights in memory at a time: 2 MiB, which fits in a cache

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean score with its interval.

    mean: over the queries whose score is not NaN; NaN if there are none.
    lower, upper: ends of the interval; NaN if there is none.
    above_zero: fraction of the resampled means that are above 0.
    num_classes: classes with a score.
    reason: why there is no interval; "" if there is one.
    """

    mean: float
    lower: float
    upper: float
    above_zero: float
    num_classes: int
    reason: str = ""


def class_bootstrap(
    scores: Tensor,
    labels: Tensor,
    num_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    differences: bool = False,
) -> Interval:
    """Mean of a score over queries with its bootstrap interval over classes: `class_bootstraps` of one score.

    >>> scores, labels = (torch.arange(120) % 7 > 1).double(), torch.arange(120) // 4
    >>> mean, lower, upper, *_ = class_bootstrap(scores, labels)
    >>> f"{100 * mean:.1f} [{100 * lower:.1f}, {100 * upper:.1f}]"
    '70.8 [63.9, 79.0]'
    """
    return class_bootstraps({"score": scores}, labels, num_samples, confidence, seed, differences)["score"]


def class_bootstraps(
    scores: Mapping[str, Tensor],
    labels: Tensor,
    num_samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    differences: bool = False,
) -> dict[str, Interval]:
    """Mean of each score over queries with its bootstrap interval over classes.

    Classes of queries are drawn with replacement, each with all its queries; the gallery stays fixed. So the interval
    is about other classes of the same kind searched in this gallery: with leave-one-out, the other classes remain as
    distractors. The result depends on neither the order of the queries, the numbers of the classes, nor the other
    scores.

    There is no interval with fewer than 20 classes, or if fewer than 5 classes are above or below the mean, as with a
    recall of nearly 100 %: `reason` says so. Intervals of differences are symmetric, because skewed ones cover too
    rarely if few queries differ; they also need 10 classes in which the models differ.

    Args:
        scores: name -> (Q,), in [0, 1]; queries with NaN do not count for this score.
        labels: (Q,) integers, the class of each query.
        num_samples: number of resamples, at least 100.
        confidence: coverage of the interval, between 0 and 1.
        seed: seed of the resampling.
        differences: whether the scores are differences, in [-1, 1], of the scores of two models, in [0, 1].

    Raises:
        ValueError: for invalid settings, shapes or scores.
    """
    limits = (-1.0 if differences else 0.0, 1.0)
    _check(scores, labels, num_samples, confidence, limits)
    columns = torch.stack([values.detach().cpu().double() for values in scores.values()], dim=1)  # (Q, S)
    sums, counts = _class_sums(columns, labels.detach().cpu())
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN without queries, infinite t without spread
        means = sums.sum(0) / counts.sum(0)  # (S,)
        deviations = sums - means * counts  # (C, S)
        resampled, t = _resample(deviations, counts, num_samples, seed)  # (R, S) each
        error = np.sqrt((deviations**2).sum(0)) / counts.sum(0)  # (S,), standard error of a ratio over clusters
        low, high = _quantiles(t, confidence, differences)  # (S,) each
        lower, upper = means - high * error, means - low * error
    above_zero = (means + resampled > 0).mean(0)
    intervals = {}
    for column, name in enumerate(scores):
        num_classes, num_different = int((counts[:, column] > 0).sum()), int((sums[:, column] != 0).sum())
        reason = _why_no_interval(deviations[:, column], num_classes, num_different if differences else None)
        ends = (np.nan, np.nan) if reason else np.clip((lower[column], upper[column]), *limits)
        about = float(above_zero[column]), num_classes, reason
        intervals[name] = Interval(float(means[column]), float(ends[0]), float(ends[1]), *about)
    return intervals


def score_intervals(result: SearchResult, seed: int = 0) -> dict[str, Interval]:
    """95 % interval of each score of a search, over the classes of its queries; {} if relevance is not from labels."""
    if result.labels is None:
        return {}
    return class_bootstraps(result.scores, result.labels[result.queries], seed=seed)


def _check(
    scores: Mapping[str, Tensor], labels: Tensor, num_samples: int, confidence: float, limits: tuple[float, float]
) -> None:
    """Raises ValueError for arguments that `class_bootstraps` does not accept."""
    check_integer("num_samples", num_samples, 100)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, such as 0.95, got {confidence}.")
    if not scores:
        raise ValueError("scores must hold at least one score, got none.")
    check_tensors(labels=labels, **scores)
    check_integers(labels.numel(), labels=labels)
    for name, values in scores.items():
        if values.shape != labels.shape or not values.is_floating_point():
            raise ValueError(
                f"{name} must be floating point, of shape ({len(labels)},) as the labels, got {values.dtype} "
                f"{tuple(values.shape)}."
            )
        outside = values[(values < limits[0]) | (values > limits[1])]
        if len(outside):
            raise ValueError(f"{name} must be between {limits[0]:g} and {limits[1]:g}, got {float(outside[0]):g}.")


def _class_sums(scores: Tensor, labels: Tensor) -> tuple[Floats, Floats]:
    """Sum and number (C, S) of the scores (Q, S) of each class that are not NaN.

    Each column is sorted by these numbers, so that neither the labels nor the other scores matter.
    """
    classes, class_of = torch.unique(labels, return_inverse=True)
    totals = torch.zeros(2, len(classes), scores.shape[1], dtype=torch.int64)
    totals[0].index_add_(0, class_of, (scores.nan_to_num(0.0) * FIXED_POINT).round().long())
    totals[1].index_add_(0, class_of, (~scores.isnan()).long())
    sums, counts = totals.numpy()
    order = np.lexsort((sums, counts), axis=0)
    sums, counts = (np.take_along_axis(values, order, 0) for values in (sums, counts))
    return sums / FIXED_POINT, counts.astype(np.float64)


def _resample(deviations: Floats, counts: Floats, num_samples: int, seed: int) -> tuple[Floats, Floats]:
    """Resampled means minus the mean (R, S), and the same divided by the standard error of the resample (R, S)."""
    num_classes, num_scores = counts.shape
    terms = np.concatenate([deviations, counts, deviations**2, deviations * counts, counts**2], axis=1)  # (C, 5 S)
    parts = [weights @ terms for weights in _weights(num_classes, num_samples, seed)]
    totals = np.concatenate(parts).reshape(num_samples, 5, num_scores).transpose(1, 0, 2)
    deviation, count, squares, products, squared_counts = totals  # (R, S) each
    shift = deviation / count
    # of the deviations from the mean of the resample: sum of (deviation - shift * count) ** 2
    squares = np.maximum(squares - 2 * shift * products + shift**2 * squared_counts, 0)
    t = shift / (np.sqrt(squares) / count)
    return shift, np.where(np.isnan(t), 0.0, t)  # 0 / 0: the resample has neither shift nor spread


def _weights(num_classes: int, num_samples: int, seed: int) -> Iterator[Floats]:
    """How often each class is drawn (r, C), for r resamples at a time, R in total."""
    generator = np.random.default_rng(seed)
    step = max(CHUNK // num_classes, 1)
    for start in range(0, num_samples, step):
        size = min(step, num_samples - start)
        drawn = generator.integers(0, num_classes, (size, num_classes))
        drawn += num_classes * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * num_classes).reshape(size, num_classes).astype(np.float64)


def _quantiles(t: Floats, confidence: float, symmetric: bool) -> tuple[Floats, Floats]:
    """Lower and upper quantile (S,) of t (R, S), so that the share `confidence` lies between them."""
    num_samples = len(t)
    tail = max(int((num_samples + 1) * (1 - confidence) / 2), 1)
    if symmetric:
        high = np.sort(np.abs(t), axis=0)[num_samples - 2 * tail]
        return -high, high
    ordered = np.sort(t, axis=0)
    return ordered[tail - 1], ordered[num_samples - tail]


def _why_no_interval(deviations: Floats, num_classes: int, num_different: int | None) -> str:
    """Why the deviations (C,) of the classes give no interval; "" if they do.

    num_different: number of classes in which two models differ; None if the scores are no differences.
    """
    if num_classes < MIN_CLASSES:
        return f"{num_classes} {'class' if num_classes == 1 else 'classes'}, fewer than {MIN_CLASSES}"
    if num_different is not None and num_different < MIN_DIFFERENT:
        return f"the models differ in {num_different} of {num_classes} classes, fewer than {MIN_DIFFERENT}"
    above, below = int((deviations > 0).sum()), int((deviations < 0).sum())
    if above == below == 0:
        return "all classes have the same score"
    if min(above, below) < MIN_ON_EACH_SIDE:
        side = "above" if above < below else "below"
        return f"only {min(above, below)} of {num_classes} classes {side} the mean, fewer than {MIN_ON_EACH_SIDE}"
    return ""
