"""How images of your own are split into training, validation and test: by names of parts, or by classes at random."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_recall._lightning import rank_zero_warn
from lightning_recall.data.image_files import ImageFiles, ImageTransforms
from lightning_recall.data.messages import counted, quote, short
from lightning_recall.data.tables import encode_labels

PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
    "query": ("query", "queries"),
    "gallery": ("gallery",),
}
PART_OF = {name: part for part, names in PART_NAMES.items() for name in names}
"""part of each name, in lower case"""
PART_WORDS = PART_OF | {"trn": "train", "vld": "val", "tst": "test", "probe": "query"}
"""part of each word, in lower case, that makes the name of a folder look like that of a part"""


def part_of(name: str) -> str | None:
    """The part that a folder or a cell names, in any case: train, val, test, query or gallery; None for other names."""
    return PART_OF.get(name.lower())


def check_look_alikes(names: Sequence[str], root: Path) -> None:
    """Raises ValueError where folders of classes have names that hold words for different parts, as `train_set`."""
    example: dict[str, str] = {}  # part -> the first name that holds a word for it
    for name in names:
        for word in re.findall("[a-z]+", name.lower()):
            if word in PART_WORDS:
                example.setdefault(PART_WORDS[word], name)
    found = list(dict.fromkeys(example.values()))
    if len(found) > 1:
        names_found = ", ".join(quote(short(name, 40)) for name in found[:3])
        raise ValueError(
            f"{short(root)} holds {names_found}, which look like parts of a data set. Name such "
            f"folders {', '.join(PART_NAMES)}, with a folder for each class in each; if they are classes, give them "
            "names without these words."
        )


def check_class_names(classes: Sequence[str], where: Path) -> None:
    """Warns of two classes whose names differ only in case.

    Raises:
        ValueError: for names that look the same: one has composed characters (NFC), the other has not.
    """
    names = sorted(set(classes))
    same = first_alike(names, lambda name: unicodedata.normalize("NFC", name))
    if same is not None:
        raise ValueError(
            f"{short(where)}: two classes have names that look the same, coded as {ascii(same[0])[:99]} and "
            f"{ascii(same[1])[:99]}. Give them one name if they are one class, else different ones."
        )
    alike = first_alike(names, lambda name: unicodedata.normalize("NFC", name.casefold()))
    if alike is not None:
        rank_zero_warn(
            f"{short(where)}: the names of the classes {quote(alike[0])} and {quote(alike[1])} differ only in case."
        )


def first_alike(names: Sequence[str], key: Callable[[str], str]) -> tuple[str, str] | None:
    """The first two names that have the same key."""
    seen: dict[str, str] = {}
    return next(((seen[key(name)], name) for name in names if seen.setdefault(key(name), name) != name), None)


def image_files(root: Path, paths: list[str], classes: list[str], transforms: ImageTransforms) -> ImageFiles:
    """Image files whose labels number the names of their classes in alphabetical order."""
    (labels,) = encode_labels(classes)
    data = ImageFiles(root, paths, labels, transforms=transforms)
    data.class_names = tuple(sorted(set(classes)))
    return data


def split_classes(data: ImageFiles, test_classes: float, seed: int) -> dict[str, ImageFiles]:
    """Some classes for the test, the others for training.

    Raises:
        ValueError: for fewer than 4 classes, or a number that leaves too few.
    """
    count = len(np.unique(data.labels))
    if count < 4:
        raise ValueError(
            f"{short(data.root)} holds {counted(count, 'class', 'classes')}: training needs 2, validation and test "
            "one each, and all should have many more."
        )
    test = held_out_classes(data.labels, test_classes, seed, "test_classes", "test")
    return {"train": data.select(~test), "test": data.select(test)}


def split_parts(
    root: Path, parts: list[str], paths: list[str], classes: list[str], transforms: ImageTransforms
) -> dict[str, ImageFiles]:
    """Splits images by the part that each belongs to: train, val, test, or query and gallery.

    Raises:
        ValueError: if a class is in two parts, or only one of query and gallery is there, or these beside test.
    """
    part = np.array(parts)
    data = image_files(root, paths, classes, transforms)
    searched = {"query", "gallery"} & set(parts)
    if searched and (len(searched) < 2 or "test" in parts):
        raise ValueError(
            f"{short(root)} has {' and '.join(sorted(set(parts)))}: a test is `test`, or `query` and `gallery`."
        )
    role = np.where(np.isin(part, ("query", "gallery")), "test", part)
    split = {name: data.select(role == name) for name in ("train", "val", "test") if name in role}
    if searched:
        split["test"].is_query, split["test"].is_gallery = (
            part[role == "test"] == "query",
            part[role == "test"] == "gallery",
        )
    for name, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if not {name, other} <= set(split):
            continue
        both = np.intersect1d(split[name].labels, split[other].labels)
        if len(both):
            example = classes[int(np.flatnonzero(data.labels == both[0])[0])]
            number = counted(len(both), "class is", "classes are")
            raise ValueError(
                f"{short(root)}: {number} in {name} and in {other}, such as {quote(example)}. Retrieval is judged on "
                "classes that the training has not seen: give different ones."
            )
    return split


def held_out_classes(
    labels: Sequence[int] | NDArray[np.int64],
    share: Any,
    seed: int,
    name: str = "val_classes",
    part: str = "validation",
) -> NDArray[np.bool_]:
    """Chooses classes at random and marks their rows: (N,) bool, True for those set aside.

    Args:
        labels: (N,) of all.
        share: of the classes, above 0 and below 1, of which it makes one at least; or a number of them, from 1.
        seed: of the choice.
        name: of the setting, for the error.
        part: what they are set aside for, likewise.

    Raises:
        ValueError: if no class would be set aside, or none be left, or for a number that is not whole.
    """
    is_number = isinstance(share, (int, float, np.number))
    if not (is_number and (0 < share < 1 or share == share // 1)):
        raise ValueError(f"{name} must be a share below 1 or a whole number of classes, got {share!r}.")
    classes = np.unique(np.asarray(labels))
    count = max(round(share * len(classes)), 1) if 0 < share < 1 else int(share)
    if not 0 < count < len(classes):
        raise ValueError(
            f"{name}={share} sets {count} of {counted(len(classes), 'class', 'classes')} aside; it must leave at least "
            f"one for {part} and one for training."
        )
    return np.isin(labels, np.random.default_rng(seed).permutation(classes)[:count])
