"""A plot of recall against bytes an image."""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import cos, pi, sin

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox

from lightning_recall.compression.size_rows import SizeRow

STYLES = {
    "leading dimensions": ("#0072b2", "o"),
    "PCA": ("#009e73", "s"),
    "scalar": ("#000000", "D"),
    "binary": ("#d55e00", "^"),
    "faiss": ("#cc79a7", "v"),
}
"""family -> colour (colour-blind safe, Okabe and Ito) and marker"""

LINES = ("leading dimensions", "PCA")  # families whose points are connected
OFFSETS = [
    (radius * cos(pi * angle / 8), radius * sin(pi * angle / 8))
    for radius, angle in product(range(11, 72, 6), (4, -4, 2, 6, -2, -6, 0, 8, 3, 5, -3, -5, 1, 7, -1, -7))
]
"""where a label may stand, in points from its point, best first"""


def draw_sizes(rows: Sequence[SizeRow], k: int = 1) -> Figure:
    """Plots Recall@k against bytes an image, on a logarithmic axis.

    Numbers of dimensions are beside their points; other methods have a number, which the legend explains. Rows below
    half of the best recall would flatten the others; the title names them instead.

    Args:
        rows: rows of `size_table`.
        k: one of its cut-offs.

    Raises:
        ValueError: if the rows have no such cut-off.
    """
    key = f"recall@{k}"
    if any(key not in row.scores for row in rows):
        raise ValueError(f"k must be a cut-off of the rows, which have {', '.join(rows[0].scores)}, got {k}.")
    best = max(row.scores[key] for row in rows)
    below = [f"{row.method}: {100 * row.scores[key]:.1f}" for row in rows if row.scores[key] < best / 2]
    shown = sorted((row for row in rows if row.scores[key] >= best / 2), key=lambda row: [*STYLES].index(row.family))
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    for row in shown:
        colour, marker = STYLES[row.family]
        axes.plot(*_place(row, key), color=colour, marker=marker, linestyle="none", markersize=7, alpha=0.8)
    for family in LINES:
        points = sorted(_place(row, key) for row in shown if row.family == family)
        if points:
            axes.plot(*zip(*points, strict=True), color=STYLES[family][0], alpha=0.8)
    axes.set_title("\n".join(["Recall of stored embeddings", *(["Not shown: " + "; ".join(below)] if below else [])]))
    axes.title.set_fontsize(9)
    _label(axes, shown, key)
    return figure


def _place(row: SizeRow, key: str) -> tuple[float, float]:
    """Where the point of a row is: bytes, and recall in percent."""
    return row.bytes_per_image, 100 * row.scores[key]


def _label(axes: Axes, rows: Sequence[SizeRow], key: str) -> None:
    """Sets up the axes and the legend, and writes a dimension or a number beside each point."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="bytes an image", ylabel=f"{key.capitalize()}, %")
    axes.margins(x=0.12, y=0.2)
    axes.grid(alpha=0.3)
    numbered = [row for row in rows if row.family not in LINES]
    texts = [
        str(numbered.index(row) + 1) if row in numbered else "full" if row.method == "full" else str(row.dim)
        for row in rows
    ]
    handles = [_handle(family, f"{family}, d") for family in LINES if any(row.family == family for row in rows)]
    handles += [_handle(row.family, f"{number} {row.method}") for number, row in enumerate(numbered, 1)]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # a Figure; fixes the axes, so that labels can be measured
    obstacles = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in _drawn(axes)]  # pixels
    for row, text in zip(rows, texts, strict=True):
        obstacles.append(_write(axes, text, _place(row, key), STYLES[row.family][0], obstacles))


def _handle(family: str, label: str) -> Line2D:
    """An entry of the legend."""
    colour, marker = STYLES[family]
    return Line2D([], [], color=colour, marker=marker, linestyle="-" if family in LINES else "none", label=label)


def _drawn(axes: Axes) -> Iterator[tuple[float, float]]:
    """Pixels along the lines and at the points."""
    for line in axes.lines:
        pixels = [tuple(pixel) for pixel in axes.transData.transform(line.get_xydata())]
        yield from pixels
        for (x0, y0), (x1, y1) in pairwise(pixels):
            for part in torch.linspace(0, 1, 2 + int(max(abs(x1 - x0), abs(y1 - y0)) / 4)).tolist():
                yield x0 + part * (x1 - x0), y0 + part * (y1 - y0)


def _write(axes: Axes, text: str, place: tuple[float, float], colour: str, obstacles: Sequence[Bbox]) -> Bbox:
    """Writes a label, tied to its point, at the first offset where it hides nothing; returns its box and a margin."""
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    label = axes.annotate(
        text, place, textcoords="offset points", xytext=(0, 0), fontsize=8, ha="center", va="center", arrowprops=line
    )
    label.set_color(colour)
    for offset in OFFSETS:
        label.xyann = offset
        label.get_window_extent()  # moves the label
        box = Text.get_window_extent(label)  # without the line to the point
        inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
        if inside and not box.count_overlaps(obstacles):
            break
    return box.padded(1.5)
