"""Helpers of pictures that are drawn in inches."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def axes_in_inches(width: float, height: float) -> Axes:
    """Axes of a new figure, in inches from the upper left corner; one Axes for all pictures is drawn faster."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.axis("off")
    return axes


def shorten(name: str, length: int) -> str:
    """A name of at most `length` characters, without those in its middle if it is too long; `length` is at least 3.

    >>> shorten("desktop_computer", 9), shorten("mug", 9)
    ('deskt…ter', 'mug')
    """
    start = (length + 1) // 2
    return name if len(name) <= length else f"{name[:start]}…{name[len(name) - (length - start - 1) :]}"
