"""Two changes to docstrings before mkdocstrings shows them: examples become code, public names become links."""

import ast
import re
from pathlib import Path
from typing import Any

import griffe

PACKAGE = Path(__file__).parent.parent / "lightning_recall"


def public_names() -> dict[str, str]:
    """Path of each name that a folder of the package lists in `__all__`, and of the two that are files."""
    paths = {"SimilarityMixup": "lightning_recall.mixup", "gather_rows": "lightning_recall.gather"}
    for file in PACKAGE.glob("*/__init__.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                paths.update(dict.fromkeys(ast.literal_eval(node.value), f"lightning_recall.{file.parent.name}"))
    return {name: f"{room}.{name}" for name, room in paths.items() if name not in ("main", "run")}


class Docstrings(griffe.Extension):
    """Puts a heading over the first `>>>` of each docstring, which Griffe looks for, and links names in backticks."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = public_names()

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each class, function and module."""
        if obj.docstring is None:
            return
        text, prompt, examples = obj.docstring.value.partition("\n>>> ")
        owners = {obj.name, obj.parent.name if obj.parent else ""}  # their own page needs no link to them

        def link(match: re.Match[str]) -> str:
            name = match[1]
            return f"[`{name}`][{self.paths[name]}]" if name in self.paths and name not in owners else match[0]

        text = re.sub(r"`(\w+)`", link, text)
        if prompt:
            text += "\n\nExamples:\n    >>> " + examples.replace("\n", "\n    ")
        obj.docstring.value = text
