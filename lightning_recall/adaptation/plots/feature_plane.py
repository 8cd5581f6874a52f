"""Draws features of both domains in the plane, coloured by domain and by class."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from lightning_recall.callbacks.class_colors import class_colors
from lightning_recall.callbacks.figures import shorten

DOMAIN_COLORS = {"source": "#0072b2", "target": "#d55e00"}  # colour-blind safe (Okabe and Ito)
MARKERS = {"source": "o", "target": "^"}
MAX_CLASSES = 20  # with a colour of their own
OTHERS = "0.75"  # grey, of other classes and of images without label
PANEL, LEFT, RIGHT, TOP, GAP, BOTTOM = 4.0, 0.35, 1.95, 0.6, 0.12, 0.12  # inches
NAME_LENGTH = 18  # characters of a name in the legend
POINT: dict[str, Any] = {"linewidth": 0, "alpha": 0.7}


class FeaturePoints(NamedTuple):
    """Images in the plane at one time.

    title: such as "before training".
    points: (N, 2).
    is_source: (N,) whether an image is from the source.
    labels: (N,) classes; negative for images without label.
    """

    title: str
    points: NDArray[np.float64]
    is_source: NDArray[np.bool_]
    labels: NDArray[np.int64]


def draw_feature_planes(rows: Sequence[FeaturePoints], class_names: Sequence[str], method: str = "") -> Figure:
    """Draws a row for each time: to the left coloured by domain, to the right by class.

    Source images are circles, target images triangles. The 20 most frequent classes have colours; other classes, and
    images without label, are grey.

    Args:
        rows: at least one.
        class_names: name of each class.
        method: what the axes are, such as "t-SNE".
    """
    width, height = LEFT + 2 * PANEL + GAP + RIGHT, TOP + len(rows) * (PANEL + GAP) - GAP + BOTTOM
    figure = Figure(figsize=(width, height))
    shown = colored_classes(rows)
    for number, row in enumerate(rows):
        bottom = height - TOP - PANEL - number * (PANEL + GAP)
        panels = [
            figure.add_axes((left / width, bottom / height, PANEL / width, PANEL / height))
            for left in (LEFT, LEFT + PANEL + GAP)
        ]
        draw_domains(panels[0], row)
        draw_classes(panels[1], row, shown)
        for axes in panels:
            axes.set(xticks=[], yticks=[])
            axes.margins(0.03)
        panels[0].set_ylabel(row.title, fontsize=11)
    legend_position: dict[str, Any] = {"loc": "lower center", "borderaxespad": 0.0, "frameon": False, "fontsize": 9}
    middle = (LEFT + PANEL / 2) / width
    handles = [marker(domain, DOMAIN_COLORS[domain]) for domain in domains_of(rows)]
    figure.legend(handles=handles, ncols=2, bbox_to_anchor=(middle, 1 - 0.95 * TOP / height), **legend_position)
    draw_class_legend(figure, rows, shown, class_names)
    figure.text((LEFT + 1.5 * PANEL + GAP) / width, 1 - 0.85 * TOP / height, "by class", ha="center", fontsize=9)
    text = f"Features{f', {method}' if method else ''}"
    figure.text(LEFT / width, 1 - 0.18 / height, text, va="center", fontsize=11)
    return figure


def colored_classes(rows: Sequence[FeaturePoints]) -> list[int]:
    """The most frequent classes, in order."""
    labels = np.concatenate([row.labels for row in rows])
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    return sorted(classes[np.argsort(-counts, kind="stable")[:MAX_CLASSES]].tolist())


def domains_of(rows: Sequence[FeaturePoints]) -> list[str]:
    """Which domains have images."""
    is_source = np.concatenate([row.is_source for row in rows])
    return [domain for domain, present in (("source", is_source.any()), ("target", (~is_source).any())) if present]


def draw_domains(axes: Axes, row: FeaturePoints) -> None:
    """Draws the images, coloured by domain."""
    for domain, chosen in (("source", row.is_source), ("target", ~row.is_source)):
        style: dict[str, Any] = {"marker": MARKERS[domain], "color": DOMAIN_COLORS[domain], **POINT}
        axes.scatter(row.points[chosen, 0], row.points[chosen, 1], s=size_of(len(row.points)), **style)


def draw_classes(axes: Axes, row: FeaturePoints, shown: Sequence[int]) -> None:
    """Draws the images, coloured by class."""
    palette = class_colors(len(shown)) / 255
    colors = np.full((len(row.points), 3), float(OTHERS))
    for number, label in enumerate(shown):
        colors[row.labels == label] = palette[number]
    for domain, chosen in (("source", row.is_source), ("target", ~row.is_source)):
        style: dict[str, Any] = {"marker": MARKERS[domain], "color": colors[chosen], **POINT}
        axes.scatter(row.points[chosen, 0], row.points[chosen, 1], s=size_of(len(row.points)), **style)


def size_of(num_points: int) -> float:
    """Area of a point in square points: smaller for more images."""
    return float(np.clip(14_000 / max(num_points, 1), 8, 40))


def draw_class_legend(
    figure: Figure, rows: Sequence[FeaturePoints], shown: Sequence[int], class_names: Sequence[str]
) -> None:
    """Draws the legend of classes and domains, to the right of the first row."""
    palette = class_colors(len(shown)) / 255
    names = [legend_name(class_names[label]) for label in shown]
    handles = [Line2D([], [], marker="s", linestyle="", color=palette[n], label=name) for n, name in enumerate(names)]
    labels = np.concatenate([row.labels for row in rows])
    if (~np.isin(labels, shown) & (labels >= 0)).any():
        handles.append(Line2D([], [], marker="s", linestyle="", color=OTHERS, label="other classes"))
    if (labels < 0).any():
        handles.append(Line2D([], [], marker="s", linestyle="", color=OTHERS, label="class not known"))
    handles += [marker(domain, "black") for domain in domains_of(rows)]
    width, height = figure.get_size_inches()
    position = ((LEFT + 2 * PANEL + 2 * GAP) / width, 1 - TOP / height)
    style: dict[str, Any] = {"borderaxespad": 0.0, "frameon": False, "fontsize": 8.5, "labelspacing": 0.25}
    legend = figure.legend(handles=handles, loc="upper left", handlelength=1.2, bbox_to_anchor=position, **style)
    for text in legend.get_texts():
        text.set_parse_math(False)


def marker(domain: str, color: str) -> Line2D:
    """Entry of a domain in a legend."""
    return Line2D([], [], marker=MARKERS[domain], linestyle="", color=color, label=domain)


def legend_name(name: str) -> str:
    """Name of a class in the legend, which would leave out a name that starts with "_"."""
    name = shorten(name, NAME_LENGTH)
    return f" {name}" if name.startswith("_") else name
