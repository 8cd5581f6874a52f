"""Errors that a user can cause, in one paragraph."""

import difflib
import importlib
import re

import torch
from jsonargparse import ArgumentParser

from lightning_recall._lightning import MisconfigurationException

USER_ERRORS = (ValueError, OSError, ImportError, MisconfigurationException, torch.OutOfMemoryError)
"""Errors whose text says it all."""

LONGEST = 800  # characters of a message, about a paragraph

WITHOUT_CLASS = (
    "An option of a class is given without the class. Give the class first, such as --model.optimizer SGD before "
    "--model.optimizer.lr 0.1."
)

NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|- Expected a <class 'NoneType'>"
    r"|Given value|- Expected a path but|Expected a path but"
)


def plain(message: str) -> str:
    """A message of jsonargparse's without what only its authors can read.

    >>> print(plain('''Parser key "model":
    ...   Does not validate against any of the Union subtypes
    ...   Errors:
    ...     - Problem with given class_path 'lightning_recall.RecallAtKLoss':
    ...         Option 'k' is not accepted
    ...     - Expected a <class 'NoneType'>
    ...   Given value type: <class 'str'>'''))
    model: lightning_recall.RecallAtKLoss: Option 'k' is not accepted. It takes: ks, k_temperature, rank_temperature,
    count_query.
    """
    lines = [line.strip() for line in message.splitlines()]
    text = " ".join(line.removeprefix("- ") for line in lines if line and not NOISE.match(line))
    text = re.sub(r'Parser key "([\w.]+)":', r"\1:", text)
    text = re.sub(r"Problem with given class_path '([\w.]+)':", r"\1:", text)
    text = re.sub(r"Does not validate against any of the Union subtypes ?", "", text)
    text = re.sub(r"Empty module name", WITHOUT_CLASS, text)
    text = re.sub(r"Expected a dot import path string: ([\w.]+)", lambda match: unknown_class(match[1]), text)
    text = re.sub(
        r"Expected a <class '[\w.]*(?:Sequence|list|tuple)'>. Got value: ([\w., ]+)$", r"A list is written [\1].", text
    )
    text = re.sub(r"(?:a )?<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text)
    text = re.sub(r"^Unexpected config:", "A settings file holds lines of the form name: value, but one holds:", text)
    text = re.sub(
        r"([\w.]+): Option '([\w.]+)' is not accepted(?!\. It)", lambda match: match[0] + options_of(match[1]), text
    )
    return without_repeats(text)


def without_repeats(text: str) -> str:
    """A text without the sentences with which an earlier one ends.

    >>> without_repeats("loss: ks: A list is written [1]. Or x. ks: A list is written [1].")
    'loss: ks: A list is written [1]. Or x.'
    """
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.?!]) (?=\S)", text):
        if not any(earlier.endswith(sentence) for earlier in kept):
            kept.append(sentence)
    return " ".join(kept)


def unknown_class(name: str) -> str:
    """Says that there is no such class, and which name is alike."""
    known = [other for room in ("losses", "models", "modules", "datamodules", "callbacks") for other in names_in(room)]
    alike = difflib.get_close_matches(name, known, 1)
    hint = f"Did you mean {alike[0]}?" if alike else "Classes of other packages are given as package.module.Name."
    return f"There is no class {name}. {hint}"


def names_in(room: str) -> list[str]:
    """The public names of a part of the package."""
    return list(importlib.import_module(f"lightning_recall.{room}").__all__)


def options_of(class_path: str) -> str:
    """The options of a class, in a sentence."""
    module, _, name = class_path.rpartition(".")
    options = ArgumentParser().add_class_arguments(getattr(importlib.import_module(module), name), fail_untyped=False)
    return f". It takes: {', '.join(options)}." if options else ". It takes none."


def shortened(text: str) -> str:
    """A text of at most a paragraph."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."


def explain(error: BaseException) -> str:
    """What went wrong, and what to do where it can be told."""
    text = plain(str(error))
    if isinstance(error, torch.OutOfMemoryError):
        return f"The GPU's memory ran out: take a smaller --model.chunk_size. ({text.split('. ')[0]})"
    return shortened(text) or type(error).__name__
