"""Plots the errors of a verification: ROC and DET curve."""

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_recall.plots.charts import COLOURS, MARKERS
from lightning_recall.search.operating_points import OperatingPoint, RocCurve

MAX_POINTS = 2000  # drawn of a curve
DET_TICKS = (1e-6, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
LOWEST_ERROR, HIGHEST_ERROR = 1e-7, 1 - 1e-3  # drawn on the normal deviate scale, which excludes 0 and 1
MIN_EXPONENT = -7  # of the smallest FAR on the ROC curve


def draw_verification(curve: RocCurve, points: Mapping[str, OperatingPoint] | None = None) -> Figure:
    """Plots the ROC curve, TAR against FAR on a logarithmic axis, and the DET curve, 1 - TAR against FAR.

    The axes of the DET curve are normal deviates: normally distributed similarities give a straight line. Source:
    Martin et al., "The DET curve in assessment of detection task performance", Eurospeech 1997.

    Args:
        curve: rates at descending thresholds, such as `VerificationScores.verify().roc`.
        points: name of an operating point, such as "saved threshold" -> the point, which is marked on both curves.

    >>> curve = RocCurve(np.array([0.0, 0.1, 1.0]), np.array([0.0, 0.8, 1.0]), np.array([np.inf, 0.7, -0.2]))
    >>> [axes.get_title() for axes in draw_verification(curve).axes]
    ['ROC curve', 'DET curve']
    """
    far, frr = curve.false_accept_rates, 1 - curve.true_accept_rates
    shown = drawn_points(far)
    lowest = float(far[far > 0].min()) if (far > 0).any() else 1.0
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    roc, det = figure.subplots(1, 2)
    draw_roc(roc, far[shown], frr[shown], lowest)
    draw_det(det, far[shown], frr[shown], lowest)
    for number, (name, point) in enumerate((points or {}).items()):
        style = {"marker": MARKERS[number % len(MARKERS)], "color": COLOURS[1 + number % (len(COLOURS) - 1)]}
        threshold, x, y = point
        label = f"{name} {threshold:.3f}: FAR {100 * x:.2g} %, TAR {100 * y:.3g} %"
        roc.plot([max(x, lowest)], [100 * y], linestyle="", markersize=9, label=label, **style)
        det.plot([deviate(x)], [deviate(1 - y)], linestyle="", markersize=9, **style)
    if points:
        roc.legend(loc="best", fontsize=8)
    return figure


def drawn_points(far: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of at most about 2,000 points, evenly spaced along the logarithm of FAR and along the curve."""
    if len(far) <= MAX_POINTS:
        return np.arange(len(far))
    targets = np.logspace(np.log10(far[far > 0].min()), 0, MAX_POINTS // 2)
    along = np.linspace(0, len(far) - 1, MAX_POINTS // 2).astype(np.int64)
    by_rate = np.searchsorted(far, targets).clip(max=len(far) - 1)
    return np.unique(np.concatenate([by_rate, along]))


def draw_roc(axes: Axes, far: NDArray[np.float64], frr: NDArray[np.float64], lowest: float) -> None:
    """Plots TAR in percent against FAR. Points without a false accept are at the left border."""
    axes.step(np.maximum(far, lowest), 100 * (1 - frr), where="post", color=COLOURS[0])
    axes.set(xscale="log", xlim=(min(max(lowest, 10.0**MIN_EXPONENT), 0.1), 1), ylim=(0, 102))
    axes.set(xlabel="FAR, fraction of impostor pairs that are accepted", ylabel="TAR, % of genuine pairs")
    axes.set_title("ROC curve")
    axes.grid(alpha=0.3)


def draw_det(axes: Axes, far: NDArray[np.float64], frr: NDArray[np.float64], lowest: float) -> None:
    """Plots 1 - TAR against FAR, on normal deviate axes, with the line on which both are equal."""
    is_shown = (far > 0) & (far < 1) & (frr > 0) & (frr < 1)
    axes.plot(deviates(far[is_shown]), deviates(frr[is_shown]), color=COLOURS[0])
    smallest = float(frr[is_shown].min()) if is_shown.any() else lowest
    limits = [deviate(max(value / 1.5, LOWEST_ERROR)) for value in (lowest, smallest)]
    axes.set(xlim=(min(limits[0], deviate(0.05)), deviate(0.8)), ylim=(min(limits[1], deviate(0.05)), deviate(0.99)))
    ends = [max(axes.get_xlim()[0], axes.get_ylim()[0]), min(axes.get_xlim()[1], axes.get_ylim()[1])]
    axes.plot(ends, ends, color="gray", linestyle=":", linewidth=1)
    axes.annotate(
        "equal error", (ends[1], ends[1]), (-4, -4), textcoords="offset points", ha="right", va="top", fontsize=8
    )
    positions, names = [deviate(value) for value in DET_TICKS], [f"{100 * value:g}" for value in DET_TICKS]
    axes.set_xticks(positions, names, minor=False)
    axes.set_yticks(positions, names, minor=False)
    axes.set(xlabel="FAR, % of impostor pairs", ylabel="1 - TAR, % of genuine pairs")
    axes.set(xlim=(min(limits[0], deviate(0.05)), deviate(0.8)), ylim=(min(limits[1], deviate(0.05)), deviate(0.99)))
    axes.set_title("DET curve")
    axes.grid(alpha=0.3)


def deviate(rate: float) -> float:
    """The quantile of the standard normal distribution at a rate."""
    return NormalDist().inv_cdf(min(max(rate, LOWEST_ERROR), HIGHEST_ERROR))


def deviates(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same for rates (T,)."""
    return np.array([deviate(float(rate)) for rate in rates])
