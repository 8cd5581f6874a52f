"""The classes of the user's masks: names with ids or colours, from settings or a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_recall.data.messages import quote, shorten
from lightning_recall.data.tables import column_names, iterate_lines, parse_integers, read_columns
from lightning_recall.segmentation.data.masks import (
    IGNORED_PIXEL,
    MAX_CLASSES,
    MaskFormat,
    color_code,
    read_colors,
    read_ids,
)

Color = tuple[int, int, int]
Value = int | Color
CLASS_FILES = ("classes.csv", "class_dict.csv", "classes.txt")
EXAMPLES = (
    "a list of names for the ids 0, 1, ..., a mapping of names to ids or to colours (r, g, b), a CSV file with the "
    "columns name and id or name, r, g and b, or a text file with one name per line"
)


@dataclass(frozen=True)
class MaskClasses:
    """The classes of masks.

    Attributes:
        names: C names.
        colors: (C, 3) uint8 colours of the classes in the files; None for ids.
        mask_format: how a mask file becomes classes.
    """

    names: tuple[str, ...]
    colors: NDArray[np.uint8] | None
    mask_format: MaskFormat


def mask_classes(values: Mapping[str, Any], ignored: Sequence[Any] = ()) -> MaskClasses:
    """Numbers the classes in the order given.

    Args:
        values: name -> id, or name -> colour (r, g, b).
        ignored: ids, colours or names of `values` whose pixels are ignored. With ids, 255 is ignored too unless it is
            a class.

    Raises:
        ValueError: for mixed ids and colours, values out of range, a value given twice, an unknown ignored name, or a
            number of classes not from 1 to 255.

    >>> mask_classes({"road": 7, "car": 26, "void": 0}, ignored=["void"]).mask_format.class_of
    {7: 0, 26: 1, 0: 255, 255: 255}
    """
    unknown = [name for name in ignored if isinstance(name, str) and name not in values]
    if unknown:
        raise ValueError(f"ignored has {quote(unknown[0])}, which is no class: {', '.join(map(quote, values))}.")
    names = [name for name in values if name not in ignored]
    if not 1 <= len(names) <= MAX_CLASSES:
        raise ValueError(f"classes must name 1 to {MAX_CLASSES} classes that are not ignored, got {len(names)}.")
    checked = {name: check_value(name, value) for name, value in values.items()}
    kinds = {isinstance(value, tuple) for value in checked.values()}
    if len(kinds) > 1:
        raise ValueError("classes must have either ids or colours, got both.")
    (is_color,) = kinds
    others = [
        checked[value] if isinstance(value, str) else check_value(f"ignored[{index}]", value)
        for index, value in enumerate(ignored)
    ]
    wrong = [value for value in others if isinstance(value, tuple) != is_color]
    if wrong:
        raise ValueError(f"ignored must hold {'colours' if is_color else 'ids'} as classes do, got {wrong[0]}.")
    class_of: dict[int, int] = {}
    for index, name in enumerate(names):
        code = as_code(checked[name])
        if code in class_of:
            raise ValueError(f"classes give {checked[name]} to {quote(names[class_of[code]])} and {quote(name)}.")
        class_of[code] = index
    for value in others:
        if as_code(value) in class_of:
            raise ValueError(f"ignored has {value}, which is the class {quote(names[class_of[as_code(value)]])}.")
    class_of |= {as_code(value): IGNORED_PIXEL for value in others}
    if not is_color:
        class_of.setdefault(IGNORED_PIXEL, IGNORED_PIXEL)
    colors = np.array([checked[name] for name in names], dtype=np.uint8) if is_color else None
    mask_format = MaskFormat(class_of, read_colors if is_color else read_ids, tuple(names))
    return MaskClasses(tuple(names), colors, mask_format)


def check_value(name: str, value: Any) -> Value:
    """An id as int, or a colour as tuple.

    Raises:
        ValueError: for other values, or numbers out of range.
    """
    numbers = [value] if isinstance(value, int | np.integer) else value
    limit = 65535 if numbers is not value else 255
    is_valid = isinstance(numbers, Sequence) and not isinstance(numbers, str) and len(numbers) in (1, 3)
    if not is_valid or not all(isinstance(n, int | np.integer) and 0 <= n <= limit for n in numbers):
        raise ValueError(
            f"classes: {quote(name)} must have an id from 0 to 65535, or a colour of three numbers from 0 to 255, got "
            f"{value!r}."
        )
    return int(numbers[0]) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]), int(numbers[2]))


def as_code(value: Value) -> int:
    """The number that stands for an id or a colour in `MaskFormat`."""
    return color_code(value) if isinstance(value, tuple) else value


def values_of(classes: Any, root: Path) -> dict[str, Any]:
    """Name -> id or colour, from what the user gave.

    Args:
        classes: a list of names, a mapping, or the path of a file; None: one of `CLASS_FILES` in root.
        root: folder of the data set.

    Raises:
        ValueError: if there is no such file, it is malformed, or a name occurs twice.
    """
    if classes is None:
        files = [root / name for name in CLASS_FILES if (root / name).is_file()]
        if not files:
            raise ValueError(
                f"{shorten(root)} has no {' or '.join(CLASS_FILES)}: add one, or pass classes: {EXAMPLES}."
            )
        classes = files[0]
    if isinstance(classes, str | Path):
        return read_classes(Path(classes).expanduser(), root)
    if isinstance(classes, Mapping):
        return {str(name): value for name, value in classes.items()}
    if not isinstance(classes, Sequence) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes must be {EXAMPLES}, got {classes!r}.")
    return number_names(classes, "classes")


def read_classes(path: Path, root: Path) -> dict[str, Any]:
    """Name -> id or colour, from a CSV or text file; relative paths are also looked for in root."""
    file = path if path.is_file() else root / path
    if not file.is_file():
        raise ValueError(f"{shorten(path)} does not exist: classes must be {EXAMPLES}.")
    if file.suffix.lower() != ".csv":
        return number_names([cells[0] for _, cells in iterate_lines(file, "\n")], shorten(file))
    has_colors = {"r", "g", "b"} <= set(column_names(file, ","))
    names, *columns = read_columns(file, ("name", "r", "g", "b") if has_colors else ("name", "id"), ",")
    number_names(names, shorten(file))  # rejects repeated names
    numbers = [parse_integers(file, "r, g, b" if has_colors else "id", column).tolist() for column in columns]
    values = [tuple(color) for color in zip(*numbers, strict=True)] if has_colors else numbers[0]
    return dict(zip(names, values, strict=True))


def number_names(names: Sequence[str], where: str) -> dict[str, int]:
    """Name -> index.

    Raises:
        ValueError: if a name occurs twice.
    """
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"{where}: {quote(repeated[0])} occurs {names.count(repeated[0])} times; names must differ.")
    return {name: index for index, name in enumerate(names)}
