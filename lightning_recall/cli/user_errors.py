"""Exceptions that a user can cause, and their messages."""

import torch

from lightning_recall._lightning import MisconfigurationException
from lightning_recall.cli.errors import shorten, simplify
from lightning_recall.cli.task_options import task_options

USER_ERRORS = (ValueError, OSError, ImportError, MisconfigurationException, torch.OutOfMemoryError)
"""Exceptions shown without a traceback."""


def explain(error: BaseException) -> str:
    """Error message, with a remedy if one is known."""
    text = simplify(str(error))
    if isinstance(error, torch.OutOfMemoryError):
        remedies = "; ".join(f"for {task.NAME}, {task.MEMORY_REMEDY}" for task in task_options())
        return f"The GPU's memory ran out: {remedies}. ({text.split('. ')[0]})"
    return shorten(text) or type(error).__name__
