"""Splits user images into training, validation and test, by split name or by random classes."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_recall._lightning import rank_zero_warn
from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.data.folders import SPLIT_NAMES, SPLIT_OF
from lightning_recall.data.messages import pluralize, quote, shorten
from lightning_recall.data.tables import encode_labels

MIN_CLASSES = 4  # two for training, one each for validation and test
SPLIT_WORDS = SPLIT_OF | {"trn": "train", "vld": "val", "tst": "test", "probe": "query"}
"""lower-case words in folder names that suggest a split -> split"""


def check_split_like_names(names: Sequence[str], root: Path) -> None:
    """Raises ValueError if class folders look like splits, such as `train_set` and `test_set`."""
    example: dict[str, str] = {}  # split -> the first name with a word that suggests it
    for name in names:
        for word in re.findall("[a-z]+", name.lower()):
            if word in SPLIT_WORDS:
                example.setdefault(SPLIT_WORDS[word], name)
    found = list(dict.fromkeys(example.values()))
    if len(found) > 1:
        names_found = ", ".join(quote(shorten(name, 40)) for name in found[:3])
        raise ValueError(
            f"{shorten(root)} holds {names_found}, which look like splits of a data set. If they are, name the "
            f"folders {', '.join(SPLIT_NAMES)}, with one folder per class in each; if they are classes, give them "
            "names without these words."
        )


def check_class_names(classes: Sequence[str], where: Path) -> None:
    """Warns about two classes whose names differ only in case.

    Raises:
        ValueError: for class names that differ only in Unicode normalization.
    """
    names = sorted(set(classes))
    equal_names = first_with_same_key(names, lambda name: unicodedata.normalize("NFC", name))
    if equal_names is not None:
        raise ValueError(
            f"{shorten(where)}: two class names look the same, but are encoded as {ascii(equal_names[0])[:99]} and "
            f"{ascii(equal_names[1])[:99]}. Use one name if they are the same class, otherwise rename one."
        )
    similar_names = first_with_same_key(names, lambda name: unicodedata.normalize("NFC", name.casefold()))
    if similar_names is not None:
        rank_zero_warn(
            f"{shorten(where)}: the names of the classes {quote(similar_names[0])} and {quote(similar_names[1])} "
            "differ only in case."
        )


def first_with_same_key(names: Sequence[str], key: Callable[[str], str]) -> tuple[str, str] | None:
    """The first two names that have the same key."""
    seen: dict[str, str] = {}
    return next(((seen[key(name)], name) for name in names if seen.setdefault(key(name), name) != name), None)


def image_files(root: Path, paths: list[str], classes: list[str], transforms: ImageTransforms) -> ImageFiles:
    """`ImageFiles` with labels encoded from class names in alphabetical order."""
    (labels,) = encode_labels(classes)
    data = ImageFiles(root, paths, labels, transforms=transforms)
    data.class_names = tuple(sorted(set(classes)))
    return data


def split_classes(data: ImageFiles, test_classes: float, seed: int) -> dict[str, ImageFiles]:
    """Uses random classes for the test and the others for training.

    Raises:
        ValueError: for fewer than 4 classes, or if `test_classes` leaves too few.
    """
    count = len(np.unique(data.labels))
    if count < MIN_CLASSES:
        raise ValueError(
            f"{shorten(data.root)} holds {pluralize(count, 'class', 'classes')}: training needs 2, validation and test "
            "one each, and in practice many more."
        )
    is_test = held_out_classes(data.labels, test_classes, seed, "test_classes", "test")
    return {"train": data.select(~is_test), "test": data.select(is_test)}


def split_by_name(
    root: Path, splits: list[str], paths: list[str], classes: list[str], transforms: ImageTransforms
) -> dict[str, ImageFiles]:
    """Splits images by their split name: train, val, test, or query and gallery.

    Raises:
        ValueError: if a class is in two splits, or only one of query and gallery is present, or they are combined with
            test.
    """
    split = np.array(splits)
    data = image_files(root, paths, classes, transforms)
    roles = {"query", "gallery"} & set(splits)
    if roles and (len(roles) < 2 or "test" in splits):
        raise ValueError(
            f"{shorten(root)} has {' and '.join(sorted(set(splits)))}: use either test, or query and gallery."
        )
    final_split = np.where(np.isin(split, ("query", "gallery")), "test", split)
    parts = {name: data.select(final_split == name) for name in ("train", "val", "test") if name in final_split}
    if roles:
        test_split = split[final_split == "test"]
        parts["test"].is_query, parts["test"].is_gallery = test_split == "query", test_split == "gallery"
    for name, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if not {name, other} <= set(parts):
            continue
        both = np.intersect1d(parts[name].labels, parts[other].labels)
        if len(both):
            example = classes[int(np.flatnonzero(data.labels == both[0])[0])]
            number = pluralize(len(both), "class is", "classes are")
            raise ValueError(
                f"{shorten(root)}: {number} in {name} and in {other}, such as {quote(example)}. Evaluation needs "
                "unseen classes: use different classes."
            )
    return parts


def held_out_classes(
    labels: Sequence[int] | NDArray[np.int64],
    size: Any,
    seed: int,
    name: str = "val_classes",
    split: str = "validation",
) -> NDArray[np.bool_]:
    """Chooses classes at random and marks their items: (N,) bool, True for held-out classes.

    Args:
        labels: (N,) labels.
        size: fraction of the classes, above 0 and below 1, at least one class; or number of classes, at least 1.
        seed: random seed.
        name: name of the argument, for error messages.
        split: name of the held-out split, for error messages.

    Raises:
        ValueError: if no class is held out, no class is left, or the number is not an integer.
    """
    is_number = isinstance(size, (int, float, np.number))
    if not (is_number and (0 < size < 1 or size == size // 1)):
        raise ValueError(f"{name} must be a fraction below 1 or an integer, got {size!r}.")
    classes = np.unique(np.asarray(labels))
    count = max(round(size * len(classes)), 1) if 0 < size < 1 else int(size)
    if not 0 < count < len(classes):
        raise ValueError(
            f"{name}={size} holds out {count} of {pluralize(len(classes), 'class', 'classes')}; it must leave at least "
            f"one for {split} and one for training."
        )
    return np.isin(labels, np.random.default_rng(seed).permutation(classes)[:count])
