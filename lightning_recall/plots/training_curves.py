"""Plots loss and Recall@k against training steps."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]
"""(optimizer step, value)"""

LINE_STYLES = ("solid", "dashed", "dashdot", "dotted")


def draw_training_curves(curves: Mapping[str, Points], loss_key: str = "train/loss") -> Figure:
    """Plots two panels: the loss, and all other curves in percent, sorted by their last value.

    Args:
        curves: key -> points.
        loss_key: key of the loss.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if loss_key in curves:
        left.plot(*zip(*curves[loss_key], strict=True), linewidth=0.8)
    scores = sorted((key for key in curves if key != loss_key), key=lambda key: curves[key][-1][1])
    for number, key in enumerate(scores):
        steps, values = zip(*curves[key], strict=True)
        percent = [100 * value for value in values]
        style = {"linestyle": LINE_STYLES[number % len(LINE_STYLES)], "marker": "."}
        right.plot(steps, percent, label=f"{key}: {percent[-1]:.1f}", **style)
    left.set(xlabel="step", ylabel=loss_key, title="Training loss", ylim=(0, None))
    right.set(xlabel="step", ylabel="%", title="Recall@k on the validation classes")
    if scores:
        right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
