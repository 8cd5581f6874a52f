"""Plots loss and validation scores, such as Recall@k, against training steps."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]
"""(optimizer step, value)"""

LINE_STYLES = ("solid", "dashed", "dashdot", "dotted")


def draw_training_curves(curves: Mapping[str, Points], loss_key: str = "train/loss") -> Figure:
    """Plots two panels: the loss, and all other curves in percent, sorted by their last value.

    A panel without curves is omitted, such as that of the scores in a training without validation.

    Args:
        curves: key -> points.
        loss_key: key of the loss.
    """
    scores = {key: points for key, points in curves.items() if key != loss_key}
    count = max((loss_key in curves) + bool(scores), 1)
    figure = Figure(figsize=(5.5 * count, 4), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False).flat)
    if loss_key in curves or not scores:
        draw_loss(panels[0], curves.get(loss_key, ()), loss_key)
    if scores:
        draw_scores(panels[-1], scores)
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure


def draw_loss(axes: Axes, points: Points, key: str) -> None:
    """Plots the loss."""
    axes.plot([step for step, _ in points], [value for _, value in points], linewidth=0.8)
    axes.set(xlabel="step", ylabel=key, title="Training loss", ylim=(0, None))


def draw_scores(axes: Axes, scores: Mapping[str, Points]) -> None:
    """Plots scores in percent, with their last values in the legend."""
    for number, key in enumerate(sorted(scores, key=lambda key: scores[key][-1][1])):
        steps, values = zip(*scores[key], strict=True)
        percent = [100 * value for value in values]
        style = LINE_STYLES[number % len(LINE_STYLES)]
        axes.plot(steps, percent, label=f"{key}: {percent[-1]:.1f}", linestyle=style, marker=".")
    is_recall = all("recall@" in key for key in scores)
    axes.set(xlabel="step", ylabel="%", title="Recall@k on the validation classes" if is_recall else "Validation")
    axes.legend(loc="lower right")
