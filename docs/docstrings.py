"""Changes docstrings before mkdocstrings renders them: examples become code, and documented names become links."""

import re
from pathlib import Path
from typing import Any

import griffe

REFERENCE = Path(__file__).parent / "reference"


def documented_names() -> dict[str, str]:
    """Import path of each name that a page of the reference documents."""
    paths = [path for page in REFERENCE.glob("*.md") for path in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
    names = {path.rpartition(".")[2]: path for path in paths}
    return {name: path for name, path in names.items() if name not in ("main", "run")}


class Docstrings(griffe.Extension):
    """Adds the heading that Griffe expects above the first `>>>` of a docstring, and links names in backticks."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = documented_names()

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each class, function and module."""
        if obj.docstring is None:
            return
        text, prompt, examples = obj.docstring.value.partition("\n>>> ")
        owners = {obj.name, obj.parent.name if obj.parent else ""}  # no link from an entry to itself

        def link(match: re.Match[str]) -> str:
            name = match[1]
            return f"[`{name}`][{self.paths[name]}]" if name in self.paths and name not in owners else match[0]

        text = re.sub(r"`(\w+)`", link, text)
        if prompt:
            text += "\n\nExamples:\n    >>> " + examples.replace("\n", "\n    ")
        obj.docstring.value = text
