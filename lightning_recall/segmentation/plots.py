"""Draws what a network predicts: image, truth, prediction and wrong pixels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lightning_recall.callbacks.class_colors import class_colors, is_dark
from lightning_recall.callbacks.figures import axes_in_inches, shorten
from lightning_recall.segmentation.colors import LABEL_RADIUS, WRONG, label_positions, paint

PANEL, GAP, CAPTION, TITLES = 2.8, 0.08, 0.25, 0.3  # width of a picture, spaces and heights of texts, in inches
SIDE = 400  # larger pictures are drawn from every n-th pixel
LINE, SWATCH, CHARACTER = 0.26, 0.32, 0.085  # of the legend: height of a line, width of a colour and of a letter
HATCH = "/////"
NAME_LENGTH = 24  # characters of a name in the legend
COLUMNS = ("image", "truth", "prediction", "wrong pixels")


class SegmentedImage(NamedTuple):
    """An image and what a network predicts for it.

    image: (H, W, 3) in [0, 1].
    truth: (H, W) classes; values below 0 are ignored pixels.
    prediction: (H, W) classes.
    name: caption, such as the name of the file.
    """

    image: NDArray[np.float64]
    truth: NDArray[np.int64]
    prediction: NDArray[np.int64]
    name: str = ""

    def classes(self) -> set[int]:
        """The classes in truth and prediction."""
        return {number for number in np.unique([self.truth, self.prediction]).tolist() if number >= 0}

    def shrunk(self) -> "SegmentedImage":
        """Every n-th pixel, so that the longer side has at most `SIDE` pixels."""
        step = -(-max(self.truth.shape) // SIDE)
        every = (slice(None, None, step),) * 2
        return SegmentedImage(self.image[every], self.truth[every], self.prediction[every], self.name)


def image_miou(truth: NDArray[np.int64], prediction: NDArray[np.int64]) -> float:
    """Mean IoU of one image over the classes in its truth or prediction; NaN if all pixels are ignored.

    Args:
        truth: classes; values below 0 are ignored pixels.
        prediction: classes, of the same shape.

    >>> truth, prediction = np.array([0, 0, 1, -1]), np.array([0, 1, 1, 0])
    >>> image_miou(truth, prediction)
    0.5
    """
    truth, prediction = truth[truth >= 0], prediction[truth >= 0]
    if not truth.size:
        return float("nan")
    size = int(max(truth.max(), prediction.max())) + 1
    both = np.bincount(truth[truth == prediction], minlength=size)
    union = np.bincount(truth, minlength=size) + np.bincount(prediction, minlength=size) - both
    return float((both[union > 0] / union[union > 0]).mean())


def draw_segmented_images(images: Sequence[SegmentedImage], class_names: Sequence[str]) -> Figure:
    """Draws one row per image: the image, its truth, the prediction and the wrong pixels, above a legend.

    The colours differ for colour-blind readers too, and large regions have the number of their class. Ignored pixels
    are white and hatched. Wrong pixels are orange on the grey image.

    Args:
        images: at least one image; the images may have different sizes.
        class_names: name of each of the C classes; every class in truth and prediction has one.
    """
    shown = [image.shrunk() for image in images]
    heights = [PANEL * image.truth.shape[0] / image.truth.shape[1] for image in shown]
    legend = legend_entries(sorted({c for image in shown for c in image.classes()}), class_names)
    width = len(COLUMNS) * (PANEL + GAP) + GAP
    num_columns = max(1, int((width - GAP) / max(SWATCH + CHARACTER * len(name) + 0.2 for _, name in legend)))
    num_lines = -(-len(legend) // num_columns)
    height = TITLES + sum(heights) + len(shown) * (CAPTION + GAP) + num_lines * LINE + 3 * GAP
    axes = axes_in_inches(width, height)
    for column, title in enumerate(COLUMNS):
        axes.text(left_of(column) + PANEL / 2, TITLES / 2, title, ha="center", va="center", weight="bold", fontsize=11)
    top = TITLES
    for image, panel_height in zip(shown, heights, strict=True):
        draw_row(axes, image, top + CAPTION, panel_height, len(class_names))
        top += CAPTION + panel_height + GAP
    draw_legend(axes, legend, top + 2 * GAP, num_columns, class_colors(len(class_names)))
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure


def left_of(column: int) -> float:
    """Left edge of a column, in inches."""
    return GAP + column * (PANEL + GAP)


def draw_row(axes: Axes, image: SegmentedImage, top: float, height: float, num_classes: int) -> None:
    """Draws the four pictures of an image and the texts above them.

    Args:
        axes: axes in inches.
        image: the image.
        top: upper edge of the pictures, in inches.
        height: height of the pictures, in inches.
        num_classes: number of classes C.
    """
    colors = class_colors(num_classes)
    ignored = image.truth < 0
    wrong = (image.prediction != image.truth) & ~ignored
    grey = image.image.mean(2, keepdims=True).repeat(3, 2) * 0.6 + 0.2  # neither black nor white
    errors = np.where(wrong[..., None], to_rgb(WRONG), np.where(ignored[..., None], 1.0, grey))
    painted = [paint(mask, colors) / 255 for mask in (image.truth, image.prediction)]
    for column, picture in enumerate([image.image, *painted, errors]):
        extent = (left_of(column), left_of(column) + PANEL, top + height, top)
        axes.imshow(picture, extent=extent, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
        axes.add_patch(Rectangle((left_of(column), top), PANEL, height, fill=False, linewidth=0.6))
    for column in (1, 3):
        hatch(axes, ignored, left_of(column), top, height)
    for column, mask in ((1, image.truth), (2, image.prediction)):
        write_numbers(axes, mask, left_of(column), top, height, colors)
    miou = image_miou(image.truth, image.prediction)
    percent = 100 * wrong.sum() / max((~ignored).sum(), 1)
    captions = (image.name, "", "" if np.isnan(miou) else f"mIoU {100 * miou:.0f} %", f"{percent:.1f} % wrong")
    for column, caption in enumerate(captions):
        x, y = left_of(column) + PANEL / 2, top - 0.05
        axes.text(x, y, caption, ha="center", va="bottom", fontsize=8.5, parse_math=False)


def hatch(axes: Axes, region: NDArray[np.bool_], left: float, top: float, height: float) -> None:
    """Hatches a region (H, W) of a picture."""
    rows, columns = region.shape
    if min(rows, columns) < 2 or not region.any():
        return
    x = left + (np.arange(columns + 2) - 0.5) / columns * PANEL
    y = top + (np.arange(rows + 2) - 0.5) / rows * height
    padded = np.pad(region, 1)  # otherwise regions at the border stay open
    filled = axes.contourf(x, y, padded, levels=[0.5, 1.5], colors="none", hatches=[HATCH])
    filled.set(edgecolor="grey", linewidth=0)


def write_numbers(
    axes: Axes, mask: NDArray[np.int64], left: float, top: float, height: float, colors: NDArray[np.uint8]
) -> None:
    """Writes the number of each class into its large regions."""
    rows, columns = mask.shape
    for number, x, y in label_positions(mask, len(colors), LABEL_RADIUS / PANEL * columns):
        position = left + (x + 0.5) / columns * PANEL, top + (y + 0.5) / rows * height
        color = "white" if is_dark(colors[number]) else "black"
        axes.text(*position, str(number), color=color, ha="center", va="center", fontsize=7)


def legend_entries(classes: Sequence[int], class_names: Sequence[str]) -> list[tuple[int | str, str]]:
    """Entries of the legend: (class, or colour, or "" for hatching; name)."""
    entries: list[tuple[int | str, str]] = [(number, shorten(class_names[number], NAME_LENGTH)) for number in classes]
    return [*entries, ("", "ignored"), (WRONG, "wrong")]


def draw_legend(
    axes: Axes, entries: Sequence[tuple[int | str, str]], top: float, num_columns: int, colors: NDArray[np.uint8]
) -> None:
    """Draws the legend below the pictures, from left to right."""
    step = (len(COLUMNS) * (PANEL + GAP) - GAP) / num_columns
    for position, (key, name) in enumerate(entries):
        line, column = divmod(position, num_columns)
        x, y = GAP + column * step, top + line * LINE
        color = "white" if key == "" else key if isinstance(key, str) else tuple(colors[key] / 255)
        style: dict[str, Any] = {"hatch": HATCH, "edgecolor": "grey"} if key == "" else {"edgecolor": "black"}
        axes.add_patch(Rectangle((x, y), SWATCH, 0.75 * LINE, facecolor=color, linewidth=0.6, **style))
        if not isinstance(key, str):
            text = "white" if is_dark(colors[key]) else "black"
            axes.text(x + SWATCH / 2, y + 0.4 * LINE, str(key), color=text, ha="center", va="center", fontsize=7)
        axes.text(x + SWATCH + 0.06, y + 0.4 * LINE, name, va="center", fontsize=8.5, parse_math=False)
