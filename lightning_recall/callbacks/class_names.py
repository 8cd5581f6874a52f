"""Names of classes, in tables and in the keys of logged scores."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_recall.data.messages import pluralize


def checked_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """The names as a tuple; None stays None.

    Raises:
        ValueError: if their number is not `num_classes`.
    """
    if names is None:
        return None
    if isinstance(names, str) or len(names) != num_classes:
        raise ValueError(
            f"class_names must hold one name for each of the {num_classes} classes, got {pluralize(len(names), 'name')}"
            f": {names!r}."
        )
    return tuple(map(str, names))


def find_class_names(owners: Iterable[Any], num_classes: int) -> tuple[str, ...]:
    """`class_names` of the first object that has them; numbers if none has.

    Raises:
        ValueError: if their number is not `num_classes`.

    >>> find_class_names((None, object()), 3)
    ('0', '1', '2')
    """
    given = next((names for owner in owners if (names := getattr(owner, "class_names", None))), None)
    return checked_names(given, num_classes) or tuple(map(str, range(num_classes)))


def key_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names for the keys of logged scores: distinct, without spaces and slashes, which separate the parts of a key.

    A name that is empty or occurs before gets the number of its class.

    >>> key_names(["traffic light", "car", "car", "bus/tram", ""])
    ('traffic_light', 'car', 'car_2', 'bus_tram', '4')
    """
    keys: list[str] = []
    for number, name in enumerate(names):
        key = re.sub(r"[\s/\\]+", "_", name.strip())
        while not key or key in keys:
            key = f"{key}_{number}" if key else str(number)
        keys.append(key)
    return tuple(keys)
