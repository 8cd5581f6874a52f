"""Verification: whether two images show the same class, decided by a threshold on their similarity."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_recall.metrics.base import RetrievalMetric
from lightning_recall.metrics.states import concatenated_states, labelled_embeddings
from lightning_recall.search.count_ahead import ALONE, Processes
from lightning_recall.search.operating_points import ExactOperatingPoints, OperatingPoint, PairHistogram, RocCurve
from lightning_recall.search.pair_similarities import NUM_BINS, PairSimilarities, bin_edges, bin_of
from lightning_recall.search.relevant_ranks import LabelledEmbeddings

FALSE_ACCEPT_RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
EXACT_CURVE_PAIRS = 2**20  # up to this many pairs, the ROC curve has a point at each distinct similarity
MAX_SELECTED_PAIRS = 2**27  # 1.2 GB

Mask = NDArray[np.bool_]


class Verification(NamedTuple):
    """Operating points and ROC curve of a verification.

    num_genuine, num_impostor: numbers of pairs of the same class and of different classes.
    at_false_accept_rate: FAR -> the smallest threshold with at most this FAR.
    at_threshold: threshold -> its rates.
    equal_error_rate: value of FAR at which 1 - TAR is the same, on the linearly interpolated ROC curve.
    equal_error: the highest threshold with FAR >= 1 - TAR.
    f1: the largest F1 score of accepting genuine pairs; NaN if it was not requested.
    best_f1: the highest threshold that reaches it.
    roc: with more than 2^20 pairs, one point per bin of similarities, 3e-5 wide.
    """

    num_genuine: int
    num_impostor: int
    at_false_accept_rate: dict[float, OperatingPoint]
    at_threshold: dict[float, OperatingPoint]
    equal_error_rate: float
    equal_error: OperatingPoint
    f1: float
    best_f1: OperatingPoint
    roc: RocCurve


def verify(
    queries: LabelledEmbeddings,
    gallery: LabelledEmbeddings | None = None,
    false_accept_rates: Sequence[float] = FALSE_ACCEPT_RATES,
    thresholds: Sequence[float] = (),
    with_f1: bool = False,
    processes: Processes = ALONE,
    progress: bool = False,
) -> Verification:
    """Exact operating points over all pairs, in bounded memory and two passes over the similarities.

    A pair is accepted if its similarity, computed in float64 and rounded to float32, is at least the threshold. The
    first pass counts the similarities in fine bins; the second pass computes in float64 those in the bins that hold an
    operating point. So the result does not depend on block size, number of processes and device.

    Args:
        queries: Q embeddings. Pairs with the same id, and pairs with the same label and group, are ignored.
        gallery: G embeddings, each paired with each query; None: the N (N - 1) / 2 pairs of the queries.
        false_accept_rates: wanted false accept rates, between 0 and 1. A rate below one impostor pair gives NaN.
        thresholds: thresholds whose rates are wanted.
        with_f1: whether to find the threshold of the largest F1 score.
        processes: the processes that share the work; all get the result.
        progress: whether to show a progress bar for each pass that takes longer than two seconds.

    Raises:
        ValueError: without a genuine or without an impostor pair, for a rate outside of (0, 1), if embeddings are not
            finite, and if too many pairs may have the largest F1 score.

    >>> from lightning_recall.search import EmbeddingBlocks
    >>> embeddings = EmbeddingBlocks(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]]))
    >>> items = LabelledEmbeddings(embeddings, torch.tensor([7, 7, 8, 8]), torch.arange(4))
    >>> result = verify(items, false_accept_rates=[0.5, 0.1])
    >>> result.num_genuine, result.num_impostor, result.equal_error_rate
    (2, 4, 0.25)
    >>> result.at_false_accept_rate[0.5].true_accept_rate
    1.0
    """
    check_false_accept_rates(false_accept_rates)
    pairs = PairSimilarities(queries, gallery, processes, progress)
    histogram = PairHistogram(pairs.histogram().cpu().numpy(), pairs.margin)
    check_pairs(histogram)
    unit = (queries.embeddings.scale or 1.0) ** 2  # similarities are divided by it, if they are dot products
    is_small = histogram.num_genuine + histogram.num_impostor <= EXACT_CURVE_PAIRS
    is_selected = np.ones(NUM_BINS, dtype=bool)
    if not is_small:
        is_selected = selected_bins(histogram, false_accept_rates, np.array(thresholds) / unit, with_f1)
    exact = pairs.select(torch.from_numpy(is_selected).to(pairs.device))
    points = ExactOperatingPoints(histogram, is_selected, *(column.cpu().numpy() for column in exact))
    roc = points.curve() if is_small else histogram.curve(bin_edges())
    equal_error_rate, equal_error = points.equal_error()
    f1, best_f1 = points.best_f1() if with_f1 else (math.nan, OperatingPoint(*[math.nan] * 3))
    at_rate = {rate: scaled(points.at_false_accept_rate(rate), unit) for rate in false_accept_rates}
    at_threshold = {threshold: scaled(points.at_any(threshold / unit), unit) for threshold in thresholds}
    return Verification(
        histogram.num_genuine,
        histogram.num_impostor,
        at_rate,
        at_threshold,
        equal_error_rate,
        scaled(equal_error, unit),
        f1,
        scaled(best_f1, unit),
        roc._replace(thresholds=roc.thresholds * unit),
    )


def selected_bins(histogram: PairHistogram, rates: Sequence[float], thresholds: NDArray[Any], with_f1: bool) -> Mask:
    """Mask (NUM_BINS,) of the bins that hold an operating point, and of those around them."""
    bins = np.array([histogram.equal_error_bin(), *(histogram.false_accept_bin(rate) for rate in rates)])
    candidates = histogram.f1_bins() if with_f1 else bins[:0]
    is_selected = histogram.widened(np.concatenate([bins, bin_of(thresholds), candidates]))
    num_selected = -int(np.diff(histogram.above.sum(0))[is_selected].sum())
    if num_selected > MAX_SELECTED_PAIRS:
        raise ValueError(
            f"{num_selected:,} pairs are too close to the wanted thresholds, more than {MAX_SELECTED_PAIRS:,}: the "
            "embeddings do not separate the classes, or are nearly all equal."
        )
    return is_selected


def check_pairs(histogram: PairHistogram) -> None:
    """Raises ValueError without a genuine or an impostor pair."""
    if histogram.num_genuine == 0:
        raise ValueError(
            f"None of the {histogram.num_impostor:,} pairs shows the same class, so there is no true accept rate: "
            "evaluate classes with at least 2 images, in different groups if there are any."
        )
    if histogram.num_impostor == 0:
        raise ValueError(
            f"All {histogram.num_genuine:,} pairs show the same class, so there is no false accept rate and no "
            "threshold: evaluate at least 2 classes."
        )


def check_false_accept_rates(rates: Sequence[Any]) -> None:
    """Raises ValueError unless all rates are numbers between 0 and 1."""
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
            raise ValueError(f"a false accept rate must be a number above 0 and below 1, such as 0.001, got {rate!r}.")


def scaled(point: OperatingPoint, unit: float) -> OperatingPoint:
    """The point with its threshold multiplied by `unit`."""
    return point._replace(threshold=point.threshold * unit)


class VerificationScores(RetrievalMetric):
    """TAR at wanted false accept rates, and the equal error rate, over all pairs of images.

    A pair is accepted if its similarity is at least a threshold. The false accept rate (FAR) is the fraction of
    impostor pairs (different classes) that are accepted; the true accept rate (TAR) that of genuine pairs (same class).
    `tar@far=0.001` is the TAR at the smallest threshold with a FAR of at most 0.001, as on scikit-learn's `roc_curve`;
    impostors that tie are accepted or rejected together. With fewer than 1,000 impostor pairs it is NaN: FAR is then a
    multiple of a larger number. `eer` is the error rate at which FAR = 1 - TAR, on the linearly interpolated ROC curve.

    Every pair of items counts once, unless `update` gets is_query or is_gallery: then each query forms a pair with each
    gallery item. Pairs with the same class and group, such as images of the same camera, are ignored. See `verify`.

    Args:
        false_accept_rates: wanted false accept rates, above 0 and below 1.
        normalize: True, the default: the similarity is the cosine. False: the dot product.
        ignore_index: items with this label are ignored; None ignores nothing.
        progress: whether to show a progress bar for each pass that takes longer than two seconds.
        kwargs: keyword arguments passed to `torchmetrics.Metric`.

    Shapes: `update` takes embeddings (B, D), labels (B,) and, optionally, indices, is_query, is_gallery and groups
    (B,); `compute` gives {"tar@far=0.1": scalar in [0, 1], ..., "eer": scalar in [0, 1]}.

    Raises:
        ValueError: for an invalid false accept rate; in `compute`, without a genuine or without an impostor pair.

    >>> metric = VerificationScores([0.5])
    >>> metric.update(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([7, 7, 8, 8]))
    >>> metric.compute()
    {'tar@far=0.5': tensor(1.), 'eer': tensor(0.2500)}
    """

    higher_is_better: bool | None = None  # TAR is, EER is not

    def __init__(
        self,
        false_accept_rates: Sequence[float] = FALSE_ACCEPT_RATES,
        normalize: bool = True,
        ignore_index: int | None = None,
        progress: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(ignore_index, **kwargs)
        check_false_accept_rates(false_accept_rates)
        self.false_accept_rates = tuple(false_accept_rates)
        self.normalize = normalize
        self.progress = progress

    def compute(self) -> dict[str, Tensor]:
        """Computes TAR at each false accept rate, and the equal error rate."""
        return {name: torch.tensor(value, device=self.device) for name, value in scores_of(self.verify()).items()}

    def verify(self, thresholds: Sequence[float] = (), with_f1: bool = False) -> Verification:
        """Returns operating points and ROC curve; arguments as those of `verify`.

        With several processes, call it within `sync_context()`. `compute` does this automatically. Every process gets
        the full result.
        """
        states = concatenated_states(self, self.ignore_index)
        queries, gallery = (states[name].nonzero().squeeze(1) for name in ("is_query", "is_gallery"))
        labelled_queries = labelled_embeddings(states, queries, self.normalize)
        is_one_set = torch.equal(queries, gallery)
        labelled_gallery = None if is_one_set else labelled_embeddings(states, gallery, self.normalize)
        options = (self.false_accept_rates, thresholds, with_f1, self.processes(), self.progress)
        return verify(labelled_queries, labelled_gallery, *options)


def scores_of(verification: Verification) -> dict[str, float]:
    """The scores of `VerificationScores`, by name."""
    scores = {f"tar@far={rate:g}": point.true_accept_rate for rate, point in verification.at_false_accept_rate.items()}
    return {**scores, "eer": verification.equal_error_rate}
