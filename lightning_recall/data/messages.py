"""Formats numbers, names and paths for messages."""

import os
import reprlib

LONGEST = 130  # characters of a path, so that a message with three paths stays below 500 characters

short_repr = reprlib.Repr()
short_repr.maxstring = 120
quote = short_repr.repr
"""`repr` that leaves out the middle of long values"""


def shorten(path: str | os.PathLike[str] | Exception, longest: int = LONGEST) -> str:
    """Shortens a path or an error message to `longest` characters by leaving out the middle."""
    text = str(path)
    return text if len(text) <= longest else f"{text[: longest // 2 - 3]}...{text[-(longest // 2) :]}"


def pluralize(number: int, name: str, names: str | None = None) -> str:
    """Formats a count with its noun: "1 file", "1,200 files"; `names` is an irregular plural."""
    return f"{number:,} {name if number == 1 else names or name + 's'}"
