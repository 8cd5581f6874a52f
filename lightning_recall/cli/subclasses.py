"""Caches jsonargparse's subclass lists for the duration of a command."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from jsonargparse import _typehints  # its lists have no public hook


@contextmanager
def cached_subclass_lists() -> Iterator[None]:
    """Caches subclass lists until a new module is imported.

    jsonargparse looks for a short class name among all subclasses of torch.nn.Module, roughly two thousand, and repeats
    this for every occurrence of the name. Without the cache this takes two thirds of the time to parse the settings.
    """
    list_subclasses = _typehints.get_all_subclass_paths
    cache: dict[Any, list[str]] = {}

    def cached(*args: Any, **kwargs: Any) -> list[str]:
        key = (args, tuple(kwargs.items()), len(sys.modules))
        if key not in cache:
            cache[key] = list_subclasses(*args, **kwargs)
        return list(cache[key])

    with patch.object(_typehints, "get_all_subclass_paths", cached):
        yield
