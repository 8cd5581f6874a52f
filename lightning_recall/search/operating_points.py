"""Operating points of a verification: thresholds on the similarity of a pair, and how many pairs they accept.

A pair is accepted if its similarity is at least the threshold. FAR, the false accept rate, is the fraction of impostor
pairs that are accepted, and TAR, the true accept rate, that of genuine pairs.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_recall.search.pair_similarities import bin_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class OperatingPoint(NamedTuple):
    """A threshold and its rates; NaN if there are too few pairs.

    threshold: similarity from which on a pair is accepted.
    false_accept_rate: fraction of the impostor pairs that are accepted.
    true_accept_rate: fraction of the genuine pairs that are accepted.
    """

    threshold: float
    false_accept_rate: float
    true_accept_rate: float


UNDEFINED = OperatingPoint(math.nan, math.nan, math.nan)


class RocCurve(NamedTuple):
    """Rates (T,) at thresholds (T,) in descending order; the first threshold is infinity, which accepts nothing."""

    false_accept_rates: Floats
    true_accept_rates: Floats
    thresholds: Floats


class Run(NamedTuple):
    """Pairs of consecutive bins.

    num_above: number of genuine and of impostor pairs in higher bins.
    genuine: (n,) similarities, ascending.
    impostor: (m,) similarities, ascending.
    """

    num_above: tuple[int, int]
    genuine: NDArray[np.float32]
    impostor: NDArray[np.float32]

    def num_accepted(self, thresholds: NDArray[np.floating]) -> tuple[Integers, Integers]:
        """Numbers (T,) of genuine and of impostor pairs that thresholds (T,) within the run accept."""
        genuine, impostor = (
            above + len(values) - np.searchsorted(values, thresholds)
            for above, values in zip(self.num_above, (self.genuine, self.impostor), strict=True)
        )
        return genuine, impostor

    def distinct(self) -> NDArray[np.float32]:
        """The distinct similarities of the run, ascending."""
        return np.unique(np.concatenate([self.genuine, self.impostor]))


def largest_count(rate: float, total: int) -> int:
    """The largest number of `total` pairs whose fraction is at most `rate`.

    >>> largest_count(0.1, 30), largest_count(1e-3, 999)
    (3, 0)
    """
    count = math.floor(rate * total)  # the product is rounded
    while (count + 1) / total <= rate:
        count += 1
    while count / total > rate:
        count -= 1
    return count


class PairHistogram:
    """Finds the bins in which operating points lie.

    Args:
        counts: (2, B) numbers of genuine and of impostor pairs in each bin, from the lowest similarity to the highest.
        margin: bins on each side of a bin whose pairs may belong into it.
    """

    def __init__(self, counts: Integers, margin: int) -> None:
        self.num_bins, self.margin = counts.shape[1], margin
        self.above = np.pad(counts[:, ::-1].cumsum(1)[:, ::-1], ((0, 0), (0, 1)))  # (2, B + 1): in this bin or above
        self.num_genuine, self.num_impostor = (int(total) for total in self.above[:, 0])

    def false_accept_bin(self, rate: float) -> int:
        """Bin of the most similar impostor that must be rejected, so that FAR is at most `rate`."""
        return self._last_bin(self.above[1] > largest_count(rate, self.num_impostor))

    def equal_error_bin(self) -> int:
        """Bin of the threshold at which FAR and 1 - TAR cross."""
        return self._last_bin(self.above[1] / self.num_impostor >= 1 - self.above[0] / self.num_genuine)

    def f1_bins(self) -> Integers:
        """Bins that may hold the threshold of the largest F1 score."""
        genuine, impostor = self.above
        edges = np.arange(self.num_bins + 1)
        low, high = (np.clip(edges + step, 0, self.num_bins) for step in (-self.margin, self.margin))
        guaranteed = f1_score((genuine[high], impostor[low]), self.num_genuine)
        possible = f1_score((genuine[low][:-1], impostor[high][1:]), self.num_genuine)
        has_genuine = genuine[low][:-1] > genuine[high][1:]  # only genuine pairs raise the score
        candidates: Integers = np.flatnonzero((possible >= guaranteed.max()) & has_genuine)
        return candidates

    def widened(self, bins: Integers) -> NDArray[np.bool_]:
        """Mask (B,) of bins and of their margins."""
        is_selected = np.zeros(self.num_bins, dtype=bool)
        for step in range(-self.margin, self.margin + 1):
            is_selected[np.clip(bins + step, 0, self.num_bins - 1)] = True
        return is_selected

    def curve(self, edges: Floats) -> RocCurve:
        """The ROC curve at the lower edges (B,) of all bins that hold a pair."""
        is_held = np.diff(self.above.sum(0)) != 0
        accepted = self.above[:, :-1][:, is_held][:, ::-1]
        return self.rates(edges[is_held][::-1], accepted[0], accepted[1])

    def rates(self, thresholds: Floats, genuine: Integers, impostor: Integers) -> RocCurve:
        """The ROC curve of descending thresholds (T,) that accept these numbers (T,) of pairs."""
        first = np.zeros(1)
        return RocCurve(
            np.concatenate([first, impostor / self.num_impostor]),
            np.concatenate([first, genuine / self.num_genuine]),
            np.concatenate([first + np.inf, thresholds]),
        )

    @staticmethod
    def _last_bin(is_reached: NDArray[np.bool_]) -> int:
        """The highest bin at which a condition (B + 1,) holds that holds at the lowest bins."""
        return int(np.flatnonzero(is_reached[:-1])[-1])


def f1_score(num_accepted: tuple[Integers, Integers], total_genuine: int) -> Floats:
    """F1 score of accepting these numbers of genuine and impostor pairs."""
    num_genuine, num_impostor = num_accepted
    scores: Floats = 2 * num_genuine / (num_genuine + num_impostor + total_genuine)
    return scores


class ExactOperatingPoints:
    """Exact operating points in the selected bins.

    Args:
        histogram: counts of all pairs.
        is_selected: (B,) mask of the selected bins.
        similarities: (n,) exact similarities of all pairs in these bins.
        bins: (n,) their bins.
        is_genuine: (n,) bool.
    """

    def __init__(
        self,
        histogram: PairHistogram,
        is_selected: NDArray[np.bool_],
        similarities: NDArray[np.float32],
        bins: NDArray[np.int32],
        is_genuine: NDArray[np.bool_],
    ) -> None:
        self.histogram = histogram
        bounds = np.flatnonzero(np.diff(np.pad(is_selected, 1).astype(np.int8)))  # first bins and ends of runs
        self.ends = bounds[1::2]
        order = np.argsort(similarities, kind="stable")
        run_of = np.searchsorted(self.ends, bins, side="right")[order]
        similarities, is_genuine = similarities[order], is_genuine[order]
        self.runs = []
        for number, end in enumerate(self.ends):
            values, genuine = similarities[run_of == number], is_genuine[run_of == number]
            num_above = (int(histogram.above[0, end]), int(histogram.above[1, end]))
            self.runs.append(Run(num_above, values[genuine], values[~genuine]))

    def run(self, bin_number: int) -> Run:
        """The run that contains a selected bin."""
        return self.runs[int(np.searchsorted(self.ends, bin_number, side="right"))]

    def at_any(self, threshold: float) -> OperatingPoint:
        """The rates at a threshold whose bin is selected."""
        return self.at(threshold, self.run(int(bin_of(np.array([threshold]))[0])))

    def at(self, threshold: float, run: Run) -> OperatingPoint:
        """The rates at a threshold within a run."""
        genuine, impostor = run.num_accepted(np.array([threshold]))
        totals = self.histogram.num_impostor, self.histogram.num_genuine
        return OperatingPoint(threshold, float(impostor[0]) / totals[0], float(genuine[0]) / totals[1])

    def at_false_accept_rate(self, rate: float) -> OperatingPoint:
        """The smallest float32 threshold whose FAR is at most `rate`; undefined if that is less than one pair."""
        count = largest_count(rate, self.histogram.num_impostor)
        if count == 0:
            return UNDEFINED
        run = self.run(self.histogram.false_accept_bin(rate))
        rejected = run.impostor[len(run.impostor) - (count + 1 - run.num_above[1])]
        return self.at(float(np.nextafter(rejected, np.float32(np.inf))), run)

    def equal_error(self) -> tuple[float, OperatingPoint]:
        """Equal error rate, by linear interpolation of the ROC curve, and the highest threshold with FAR >= 1 - TAR."""
        run = self.run(self.histogram.equal_error_bin())
        values = run.distinct()
        genuine, impostor = run.num_accepted(values)
        far, frr = impostor / self.histogram.num_impostor, 1 - genuine / self.histogram.num_genuine
        last = int(np.flatnonzero(far >= frr)[-1])
        stricter = self.at(float(np.nextafter(values[last], np.float32(np.inf))), run)
        before = stricter.false_accept_rate - (1 - stricter.true_accept_rate)  # below 0
        weight = before / (before - (far[last] - frr[last]))
        rate = stricter.false_accept_rate + weight * (far[last] - stricter.false_accept_rate)
        return float(rate), self.at(float(values[last]), run)

    def best_f1(self) -> tuple[float, OperatingPoint]:
        """The largest F1 score and the highest threshold that reaches it."""
        best, best_point = -1.0, UNDEFINED
        candidates = self.histogram.f1_bins()
        for number in np.unique(np.searchsorted(self.ends, candidates, side="right")):
            run = self.runs[number]
            thresholds = np.unique(run.genuine)
            thresholds = thresholds[np.isin(bin_of(thresholds), candidates)]
            scores = f1_score(run.num_accepted(thresholds), self.histogram.num_genuine)
            if len(scores) and scores.max() >= best:
                best = float(scores.max())
                best_point = self.at(float(thresholds[np.flatnonzero(scores == best)[-1]]), run)
        return best, best_point

    def curve(self) -> RocCurve:
        """The ROC curve at every distinct similarity; all bins must be selected."""
        (run,) = self.runs
        thresholds = run.distinct()[::-1]
        return self.histogram.rates(thresholds.astype(np.float64), *run.num_accepted(thresholds))
