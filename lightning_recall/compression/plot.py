"""A plot of recall against bytes an image."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from lightning_recall.compression.sizes import SizeRow

STYLES = {
    "leading dimensions": ("#0072b2", "o"),
    "PCA": ("#009e73", "s"),
    "scalar": ("#000000", "D"),
    "binary": ("#d55e00", "^"),
    "faiss": ("#cc79a7", "v"),
}
"""family -> colour (colour-blind safe, Okabe and Ito) and marker"""

LINES = ("leading dimensions", "PCA")  # families whose points are connected
OFFSETS = [(x, y) for y in (6, -12, 16, -22, 26, -32, 36, -42, 46, -52) for x in (0, -40, 40)]
"""where a label may stand, in points from its point, best first"""


def draw_sizes(rows: Sequence[SizeRow], k: int = 1) -> Figure:
    """Plots Recall@k against bytes an image, on a logarithmic axis, with the name of each method.

    Rows below half of the best recall would flatten the others; the title names them instead.

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
    rows = [row for row in rows if row.scores[key] >= best / 2]
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    for family, (colour, marker) in STYLES.items():
        points = sorted((row.bytes_per_image, 100 * row.scores[key]) for row in rows if row.family == family)
        style: dict[str, Any] = {"color": colour, "marker": marker, "label": family}
        if points:
            axes.plot(*zip(*points, strict=True), linestyle="-" if family in LINES else "none", alpha=0.8, **style)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="bytes an image", ylabel=f"Recall@{k}, %")
    axes.set_title("\n".join(["Recall of stored embeddings", *(["Not shown: " + "; ".join(below)] if below else [])]))
    axes.title.set_fontsize(9)
    axes.margins(x=0.12, y=0.2)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.draw_without_rendering()  # fixes the axes, so that labels can be measured
    _label_points(axes, rows, key)
    return figure


def _label_points(axes: Axes, rows: Sequence[SizeRow], key: str) -> None:
    """Writes the name of each row beside its point, at the first place where it hides no other label and no point."""
    places = [(row.bytes_per_image, 100 * row.scores[key]) for row in rows]
    points = axes.transData.transform(places)
    taken = [axes.get_legend().get_window_extent()]  # type: ignore[union-attr]  # drawn above
    for row, place in zip(rows, places, strict=True):
        colour, _ = STYLES[row.family]
        label = axes.annotate(_label(row), place, OFFSETS[0], textcoords="offset points", fontsize=7, ha="center")
        label.set_color(colour)
        for offset in OFFSETS:
            label.xyann = offset
            box = label.get_window_extent()
            inside = (
                axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 <= box.y1 <= axes.bbox.y1
            )
            if inside and not any(box.overlaps(other) for other in taken) and box.count_contains(points) == 0:
                break
        taken.append(label.get_window_extent())


def _label(row: SizeRow) -> str:
    """What stands beside a point: the dimension for families that are connected, else the method."""
    if row.family in LINES and row.method != "full":
        return str(row.dim)
    return row.method.removeprefix("faiss ").replace(", ", ",\n", 1) if row.family == "binary" else row.method
