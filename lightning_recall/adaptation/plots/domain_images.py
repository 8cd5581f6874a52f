"""Draws images of both domains, the images between them, and generated ones."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_recall.callbacks.figures import axes_in_inches, shorten

SMALLEST, LARGEST = 0.6, 1.1  # width of a picture, in inches
PIXELS_PER_INCH = 110  # pictures from this many pixels get more room
GAP, BETWEEN_BLOCKS, LEFT, TOP, BOTTOM = 0.04, 0.25, 1.15, 0.75, 0.1  # inches
CHARACTER = 0.068  # inches, of a caption
GENERATED = "generated "


def draw_domain_images(images: Mapping[str, NDArray[np.uint8]], captions: Sequence[str], title: str = "") -> Figure:
    """Draws a row for the source, one for each mixing ratio, and one for the target.

    Generated images are a block to the right: the generator's image of a picture is in the same row and column.

    Args:
        images: name -> images (B, H, W, 3): "source", "target", "mixed RATIO" for each ratio, and the same names with
            "generated " in front.
        captions: B texts above the columns, such as the class of each source image.
        title: title of the picture.
    """
    names = rows_of(images)
    blocks = [names, [GENERATED + name for name in names]] if GENERATED + "source" in images else [names]
    count, height, width = images["source"].shape[:3]
    cell = min(max(width / PIXELS_PER_INCH, SMALLEST), LARGEST)
    cell_height = cell * height / width
    block_width = count * (cell + GAP) - GAP
    rows_height = len(names) * (cell_height + GAP) - GAP
    total_width = LEFT + len(blocks) * (block_width + BETWEEN_BLOCKS) - BETWEEN_BLOCKS + BOTTOM
    axes = axes_in_inches(total_width, TOP + rows_height + BOTTOM)
    axes.text(BOTTOM, 0.2, title, va="center", fontsize=11, parse_math=False)
    for row, name in enumerate(names):
        y = TOP + row * (cell_height + GAP) + cell_height / 2
        axes.text(LEFT - 0.1, y, row_label(name), ha="right", va="center", fontsize=9)
    for number, block in enumerate(blocks):
        left = LEFT + number * (block_width + BETWEEN_BLOCKS)
        heading = "generated from the features" if number else "images"
        axes.text(left + block_width / 2, 0.4, heading, ha="center", va="center", fontsize=9, weight="bold")
        for column, caption in enumerate(captions):
            x = left + column * (cell + GAP) + cell / 2
            text = shorten(caption, max(3, int(cell / CHARACTER)))
            axes.text(x, TOP - 0.06, text, ha="center", va="bottom", fontsize=8, parse_math=False)
        for row, name in enumerate(block):
            top = TOP + row * (cell_height + GAP)
            for column, image in enumerate(images[name]):
                x = left + column * (cell + GAP)
                axes.imshow(image, extent=(x, x + cell, top + cell_height, top), aspect="auto")
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure


def rows_of(images: Mapping[str, NDArray[np.uint8]]) -> list[str]:
    """Names of the rows: the source, the mixes from the largest ratio to the smallest, the target.

    >>> rows_of(dict.fromkeys(["source", "target", "mixed 0.2", "mixed 0.8", "generated source"]))
    ['source', 'mixed 0.8', 'mixed 0.2', 'target']
    """
    mixed = [name for name in images if name.startswith("mixed ")]
    return ["source", *sorted(mixed, key=ratio_of, reverse=True), "target"]


def ratio_of(name: str) -> float:
    """The ratio in "mixed 0.8"."""
    return float(name.removeprefix("mixed "))


def row_label(name: str) -> str:
    """Text beside a row.

    >>> row_label("mixed 0.8"), row_label("source")
    ('80 % source', 'source')
    """
    return f"{100 * ratio_of(name):g} % source" if name.startswith("mixed ") else name
