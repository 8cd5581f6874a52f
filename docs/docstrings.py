"""Has mkdocstrings show the examples of docstrings as code: Griffe looks for them under a heading only."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Puts the heading over the first `>>>` of each docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each class, function and module."""
        if obj.docstring is None:
            return
        text, prompt, examples = obj.docstring.value.partition("\n>>> ")
        if prompt:
            indented = (prompt.strip() + " " + examples).replace("\n", "\n    ")
            obj.docstring.value = f"{text}\n\nExamples:\n    {indented}"
