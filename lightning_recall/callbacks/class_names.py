"""Names of classes, in tables and in the keys of logged scores."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_recall._lightning import rank_zero_warn
from lightning_recall.data.messages import pluralize, quote


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


def check_same_names(trained: Sequence[str], found: Sequence[str] | None, are_chosen: bool = False) -> None:
    """Raises ValueError if data have the classes of a network in another order; warns if they have other classes.

    Args:
        trained: names of the K classes of the network; numbers if unknown.
        found: names of the K classes of the data; None or numbers if unknown.
        are_chosen: whether the user has named the classes of the network, which may differ from those of the data.
    """
    numbers = [str(number) for number in range(len(trained))]
    if found is None or list(trained) == list(found) or numbers in (list(trained), list(found)):
        return
    number = next(number for number, name in enumerate(trained) if name != found[number])
    difference = f"class {number} is {quote(trained[number])} for the network, but {quote(found[number])} in the data"
    if set(trained) == set(found):
        raise ValueError(
            f"The network and the data have the same classes in another order: {difference}. Give the data module the "
            "classes in the order of the training."
        )
    if not are_chosen:
        rank_zero_warn(
            f"The network was trained with other classes than those of the data: {difference}. Scores compare the "
            "numbers of the classes."
        )


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
