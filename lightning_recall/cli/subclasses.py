"""Lists the subclasses of a class once in a command, not for every short class name in its settings."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from jsonargparse import _typehints


@contextmanager
def listed_once() -> Iterator[None]:
    """Remembers what jsonargparse lists, until a module is imported, which may define more.

    jsonargparse looks for `class_path: RecallAtKLoss` among all subclasses of torch.nn.Module, some two thousand, and
    does so again whenever it meets the name: two thirds of the time that a command needs to read its settings.
    """
    listed = _typehints.get_all_subclass_paths
    known: dict[Any, list[str]] = {}

    def remembered(*args: Any, **kwargs: Any) -> list[str]:
        key = (args, tuple(kwargs.items()), len(sys.modules))
        if key not in known:
            known[key] = listed(*args, **kwargs)
        return list(known[key])

    with patch.object(_typehints, "get_all_subclass_paths", remembered):
        yield
