"""Caches jsonargparse's subclass lists for the duration of a command, and makes short class names unique."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from jsonargparse import _typehints  # its lists have no public hook

PREFERRED = ("lightning_recall.", "torch.", "torchvision.transforms.v2.")
"""starts of class paths: a short name means a class of the first of these packages that has one"""


@contextmanager
def cached_subclass_lists() -> Iterator[None]:
    """Caches subclass lists until a new module is imported; short names mean classes of `PREFERRED` packages.

    jsonargparse looks for a short class name among all subclasses of torch.nn.Module, roughly two thousand, and repeats
    this for every occurrence of the name. Without the cache this takes two thirds of the time to parse the settings.
    It rejects a name that two packages have, such as CircleLoss once pytorch_metric_learning is imported.
    """
    list_subclasses = _typehints.get_all_subclass_paths
    cache: dict[Any, list[str]] = {}

    def cached(*args: Any, **kwargs: Any) -> list[str]:
        key = (args, tuple(kwargs.items()), len(sys.modules))
        if key not in cache:
            cache[key] = without_namesakes(list_subclasses(*args, **kwargs))
        return list(cache[key])

    with patch.object(_typehints, "get_all_subclass_paths", cached):
        yield


def without_namesakes(paths: Sequence[str]) -> list[str]:
    """Removes the classes that have the name of a class of a preferred package.

    >>> without_namesakes(["torchvision.transforms.CenterCrop", "torchvision.transforms.v2.CenterCrop", "a.B", "c.B"])
    ['torchvision.transforms.v2.CenterCrop', 'a.B', 'c.B']
    """
    namesakes: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        namesakes[path.rpartition(".")[2]].append(path)
    return [path for same in namesakes.values() for path in preferred(same)]


def preferred(paths: Sequence[str]) -> Sequence[str]:
    """The paths of the first preferred package that has any; all paths if none has."""
    found = ([path for path in paths if path.startswith(start)] for start in PREFERRED)
    return next((ours for ours in found if ours), paths)
