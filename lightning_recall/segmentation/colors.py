"""Paints the classes of a mask, and finds where to write the number of a class."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

WRONG = "#ff7f00"
"""colour of wrong pixels on a grey image: orange differs from grey in every kind of colour vision"""

LABEL_RADIUS = 0.07
"""a region gets the number of its class if a diamond with this radius, in inches, fits into it"""


def paint(mask: NDArray[np.int64], colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours (H, W, 3) of the classes in a mask (H, W); values that are no class are white.

    >>> paint(np.array([[0, 255]]), np.array([[86, 180, 233]], np.uint8)).tolist()
    [[[86, 180, 233], [255, 255, 255]]]
    """
    known = (mask >= 0) & (mask < len(colors))
    painted = np.full((*mask.shape, 3), 255, dtype=np.uint8)
    painted[known] = colors[mask[known]]
    return painted


def depths(region: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Distance (H, W) of each pixel of a region to the nearest pixel outside, in steps to one of four neighbours.

    Pixels beyond the border of the image count as outside.

    >>> depths(np.ones((3, 4), bool)).tolist()
    [[1, 1, 1, 1], [1, 2, 2, 1], [1, 1, 1, 1]]
    """
    inside = np.pad(region, 1)
    distance = np.zeros(region.shape, dtype=np.int64)
    while inside.any():
        distance += inside[1:-1, 1:-1]
        inside[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return distance


def label_positions(mask: NDArray[np.int64], num_classes: int, radius: float) -> Iterator[tuple[int, int, int]]:
    """Yields (class, x, y): positions in large regions of a mask, at which the number of the class fits.

    Args:
        mask: (H, W) classes; other values get no number.
        num_classes: number of classes C.
        radius: smallest distance of a position to the border of its region, in pixels.
    """
    spacing = max(mask.shape) // 3  # one number is enough for a region around it
    for number in np.unique(mask[(mask >= 0) & (mask < num_classes)]).tolist():
        distance = depths(mask == number)
        while distance.max() >= max(radius, 1):
            y, x = map(int, np.unravel_index(distance.argmax(), distance.shape))
            yield number, x, y
            distance[max(0, y - spacing) : y + spacing + 1, max(0, x - spacing) : x + spacing + 1] = 0
