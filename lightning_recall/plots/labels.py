"""Fits names of classes into the space that a figure has for them."""

from collections.abc import Callable

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

ELLIPSIS = "…"
MAX_NAME = 40  # characters of a name in a legend

_to_path = TextToPath()


def text_width(text: str, size: float) -> float:
    """Width of a line of text in inches, at a font size in points."""
    width, _, _ = _to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return width / 72


def shorten(text: str, fits: Callable[[str], bool]) -> str:
    """The text, with characters in its middle replaced by "…" until it fits; at least its first and last remain."""
    kept = len(text)
    shortened = text
    while not fits(shortened) and kept > 2:
        kept -= 1
        shortened = text[: (kept + 1) // 2] + ELLIPSIS + text[len(text) - kept // 2 :]
    return shortened


def fit_lines(name: str, width: float, size: float) -> str:
    """A name in at most two lines that are not wider than `width` inches, shortened in the middle if necessary.

    Lines break after a space, "_" or "-"; a long word is broken anywhere.
    """

    def fits(line: str) -> bool:
        return text_width(line, size) <= width

    if fits(name):
        return name
    lines = two_lines(name, fits)
    kept = len(name)
    while lines is None and kept > 2:
        kept -= 1
        lines = two_lines(name[: (kept + 1) // 2] + ELLIPSIS + name[len(name) - kept // 2 :], fits)
    return lines or shorten(name, fits)


def two_lines(name: str, fits: Callable[[str], bool]) -> str | None:
    """The name in two lines that both fit, preferably between words and of similar length; None if impossible."""
    breaks = range(1, len(name))
    between_words = [position for position in breaks if name[position - 1] in " _-"]
    for positions in (between_words, breaks):
        options = [position for position in positions if fits(name[:position].rstrip()) and fits(name[position:])]
        if options:
            middle = min(options, key=lambda position: abs(2 * position - len(name)))
            return f"{name[:middle].rstrip()}\n{name[middle:]}"
    return None


def shorten_name(name: str) -> str:
    """A name of at most 40 characters."""
    return shorten(name, lambda text: len(text) <= MAX_NAME)
