"""Draws confusion matrices whose rows are normalised."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_recall.callbacks.figures import shorten

FEW, MANY = 12, 40  # classes up to which cells have counts, and numbers
MAX_LABELS = 60  # more classes have no room for their names
NAME_LENGTH = 18  # characters
COLORS = LinearSegmentedColormap.from_list("light blues", colormaps["Blues"](np.linspace(0, 0.95, 256)))
SHADE = PowerNorm(0.5, vmin=0, vmax=1)  # with a linear scale, confusions of 5 % would look white
DARK_FROM = 0.75  # cells with a darker shade have white text: equal contrast there


class Layout(NamedTuple):
    """Sizes that depend on the number of classes: inches of a cell and of margins; font sizes in points."""

    cell: float
    margin: float
    font: float
    name_font: float


def layout_of(num_classes: int, longest: int) -> Layout:
    """Sizes for a number of classes, whose longest name has some characters."""
    if num_classes <= FEW:
        cell, font, name_font = max(0.46, 3.0 / num_classes), 8.0, 9.0
    elif num_classes <= MANY:
        cell, font, name_font = 0.27, 6.5, 8.0
    else:
        cell, font = 9.0 / num_classes, 0.0
        name_font = min(8.0, 0.9 * 72 * cell) if num_classes <= MAX_LABELS else 8.0
    return Layout(cell, 0.5 + 0.0085 * name_font * longest, font, name_font)


def draw_confusion_matrices(confusions: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> Figure:
    """Draws the confusion matrix of each domain: beside each other up to 12 classes, otherwise one below the other.

    Each row is a true class and sums to 100 %; a row without images is grey. Up to 12 classes, cells have the
    percentage and, below it, the number of images; up to 40 classes the percentage. Names are written for up to 60
    classes. The colours differ in lightness only; small
    fractions are darker than on a linear scale.

    Args:
        confusions: domain -> counts (K, K), rows are true classes; at least one domain.
        names: K names of the classes.
    """
    num_classes = len(names)
    shown = [shorten(name, NAME_LENGTH) for name in names]
    layout = layout_of(num_classes, max(map(len, shown)) if num_classes <= MAX_LABELS else 3)
    side, title = layout.cell * num_classes, 0.45
    panel_width, panel_height = layout.margin + side + 0.15, title + side + layout.margin
    across = len(confusions) if num_classes <= FEW else 1
    down = -(-len(confusions) // across)
    width, height = panel_width * across, panel_height * down
    figure = Figure(figsize=(width, height))
    for number, (domain, counts) in enumerate(confusions.items()):
        line, column = divmod(number, across)
        left, bottom = column * panel_width + layout.margin, (down - 1 - line) * panel_height + layout.margin
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
        draw_matrix(axes, np.asarray(counts), shown, domain, layout)
    return figure


def draw_matrix(axes: Axes, counts: NDArray[np.int64], names: Sequence[str], domain: str, layout: Layout) -> None:
    """Draws one matrix (K, K)."""
    totals = counts.sum(1, keepdims=True)
    fractions = counts / np.maximum(totals, 1)
    axes.imshow(np.ma.masked_where((totals == 0).repeat(len(counts), 1), fractions), cmap=COLORS, norm=SHADE)
    axes.set_facecolor("lightgrey")
    if len(counts) <= MANY:
        write_cells(axes, counts, fractions, layout.font)
        axes.set_xticks(np.arange(len(counts) - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(len(counts) - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="both", length=0, labelsize=layout.name_font)
    if len(names) <= MAX_LABELS:
        is_short = max(map(len, names)) * layout.name_font * 0.0085 < layout.cell
        axes.set_xticks(range(len(names)), names, rotation=0 if is_short else 90, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axes.set_title(f"{domain}: {100 * accuracy:.1f} % of {counts.sum():,} images are correct", fontsize=10)
    number = " (number)" if len(names) > MAX_LABELS else ""
    axes.set_xlabel(f"predicted class{number}", fontsize=9)
    axes.set_ylabel(f"true class{number}, each row is 100 %", fontsize=9)


def write_cells(axes: Axes, counts: NDArray[np.int64], fractions: NDArray[np.float64], font: float) -> None:
    """Writes the percentage into each cell that is not empty, and for few classes the count."""
    has_counts = len(counts) <= FEW
    for row, column in np.argwhere(counts):
        fraction = fractions[row, column]
        color = "white" if SHADE(fraction) > DARK_FROM else "black"
        texts = [(percentage(fraction, 1 if has_counts else 0), font, 0.55 * font)]
        texts += [(f"{counts[row, column]:,}", 0.75 * font, -0.75 * font)] if has_counts else []
        for text, size, shift in texts:
            offset = (0, shift if has_counts else 0)
            note = axes.annotate(text, (column, row), offset, textcoords="offset points", color=color, fontsize=size)
            note.set(ha="center", va="center_baseline" if has_counts else "center")


def percentage(fraction: float, digits: int) -> str:
    """A fraction in percent; "<1" for a positive one that would be rounded to 0.

    >>> percentage(0.934, 0), percentage(0.002, 0), percentage(1.0, 1)
    ('93', '<1', '100')
    """
    text = f"{100 * fraction:.{digits}f}"
    if fraction > 0 and float(text) == 0:
        return "<1" if digits == 0 else f"<0.{'0' * (digits - 1)}1"
    return "100" if fraction == 1 else text
