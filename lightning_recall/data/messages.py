"""How messages write numbers, names and paths."""

import os
import reprlib

LONGEST = 130  # characters of a path in a message: three of them and a sentence stay below 500

shortened = reprlib.Repr()
shortened.maxstring = 120
quote = shortened.repr
"""A value in quotes for a message, its middle left out where it is long."""


def short(path: str | os.PathLike[str] | Exception, longest: int = LONGEST) -> str:
    """A path, or an error with a path in it, its middle left out where it has more than `longest` characters."""
    text = str(path)
    return text if len(text) <= longest else f"{text[: longest // 2 - 3]}...{text[-(longest // 2) :]}"


def counted(number: int, name: str, names: str | None = None) -> str:
    """A number and what it counts: "1 file", "1,200 files"; `names` where the plural has another ending."""
    return f"{number:,} {name if number == 1 else names or name + 's'}"
