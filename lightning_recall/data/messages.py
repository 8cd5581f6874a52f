"""Formats numbers, names and paths for messages."""

import os
import reprlib

MAX_LENGTH = 130  # maximum length of a path in a message

short_repr = reprlib.Repr()
short_repr.maxstring = 120
quote = short_repr.repr
"""`repr` that leaves out the middle of long values"""


def shorten(path: str | os.PathLike[str] | Exception, max_length: int = MAX_LENGTH) -> str:
    """Shortens a path or an error message to `max_length` characters by leaving out the middle."""
    text = str(path)
    return text if len(text) <= max_length else f"{text[: max_length // 2 - 3]}...{text[-(max_length // 2) :]}"


def pluralize(number: int, name: str, names: str | None = None) -> str:
    """Formats a count with its noun: "1 file", "1,200 files"; `names` is an irregular plural."""
    return f"{number:,} {name if number == 1 else names or name + 's'}"
