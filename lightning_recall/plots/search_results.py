"""Draws the answers of a search: images of queries beside the images that were found."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lightning_recall.plots.retrieved_images import (
    BLACK,
    IMAGE,
    IRRELEVANT,
    LARGE,
    LARGE_IMAGE,
    NAME,
    RELEVANT,
    Grid,
    empty_figure,
    longest_side,
    show_picture,
    to_picture,
)

UNKNOWN = ("grey", "solid")
BLANK = np.ones((2, 2))
"""drawn for an image that is missing"""


class FoundImage(NamedTuple):
    """An image of a row.

    image: (C, H, W), uint8 or floats; None: an empty frame is drawn.
    name: drawn below it, such as its class or file.
    similarity: to the query; None for the query itself.
    is_match: whether the similarity reaches the threshold; None if there is no threshold.
    """

    image: Tensor | None
    name: str = ""
    similarity: float | None = None
    is_match: bool | None = None


def draw_search_results(rows: Sequence[Sequence[FoundImage]], title: str = "") -> Figure:
    """Draws one row for each query: the query, then what was found, with its similarity.

    Matches have a green, solid frame; images below the threshold a red, dashed one and the text "no match".

    Args:
        rows: at least one; the first image of each is the query. Rows may have different lengths.
        title: drawn above the rows.

    >>> import torch
    >>> query, found = FoundImage(torch.rand(3, 8, 8), "query.jpg"), FoundImage(torch.rand(3, 8, 8), "cat", 0.9, True)
    >>> len(draw_search_results([[query, found]]).axes[0].images)
    2
    """
    pictures = [[BLANK if found.image is None else to_picture(found.image) for found in row] for row in rows]
    is_large = longest_side(picture for row in pictures for picture in row) >= LARGE
    grid = Grid(LARGE_IMAGE if is_large else IMAGE, NAME)
    figure, axes = empty_figure(grid, max(map(len, rows)), len(rows), head=0.6 if title else 0.0)
    for number, row in enumerate(rows):
        for column, found in enumerate(row):
            texts = caption_of(found), found.name
            width = 1 if found.is_match is None else 3
            show_picture(axes, grid, (number, column), pictures[number][column], texts, frame_of(found), width)
            if found.image is None:
                center = np.mean(np.reshape(axes.images[-1].get_extent(), (2, 2)), axis=1)
                axes.text(center[0], center[1], "no image", fontsize=8, color="grey", ha="center", va="center")
    if title:
        figure.suptitle(title, fontsize=10, y=1 - 0.1 / figure.get_figheight(), parse_math=False)
    return figure


def caption_of(found: FoundImage) -> str:
    """Text above an image: "query", or its similarity, and whether it is no match."""
    if found.similarity is None:
        return "query"
    return f"{found.similarity:.2f}" + ("\nno match" if found.is_match is False else "")


def frame_of(found: FoundImage) -> tuple[str, Any]:
    """Colour and line style of the frame of an image."""
    if found.is_match is None:
        return BLACK if found.similarity is None else UNKNOWN
    return RELEVANT if found.is_match else IRRELEVANT
