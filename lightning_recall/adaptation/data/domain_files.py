"""Finds the images of a domain: class folders, a folder of images without classes, or a text file that lists them."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_recall.data.folders import (
    images_below,
    is_hidden,
    list_images,
    split_of,
    warn_about_skipped,
)
from lightning_recall.data.messages import quote, shorten
from lightning_recall.data.tables import LONGEST_PATH, open_text, require_path

IMAGES_FOLDER = "images"  # of Office-31: amazon/images/CLASS
MOST_LISTED = 10  # folders in a message
SPLITS = ("train", "val", "test")
LIST_FILE = "image_list.txt"  # of VisDA-2017, in the folder of a domain
LAYOUTS = (
    "root/DOMAIN/CLASS/*.jpg, root/DOMAIN/images/CLASS/*.jpg, root/DOMAIN/image_list.txt, or the list files "
    "root/DOMAIN.txt or root/DOMAIN_train.txt and root/DOMAIN_test.txt with a path and a label on each line"
)


class Listing(NamedTuple):
    """Images of a domain: paths relative to root, the class of each (None: unknown), and all classes in order."""

    paths: list[str]
    classes: list[str | None]
    names: tuple[str, ...]


def find_domain(root: Path, domain: str) -> dict[str, Listing]:
    """Lists the images of a domain.

    Args:
        root: folder of all domains.
        domain: name of a folder or of a list file; see `LAYOUTS`.

    Returns:
        Split -> images: "train" alone, or also "val" and "test" if the domain is divided into splits.

    Raises:
        ValueError: if there is no such domain, or it has no images.
    """
    lists = list_files(root, domain)
    if lists:
        return {split: read_list(file, root) for split, file in lists.items()}
    there = ", ".join(quote(each.name) for each in visible_folders(root)[:MOST_LISTED]) or "none"
    folder = require_path(root / domain, f"Folders there: {there}. Layouts: {LAYOUTS}.")
    if not folder.is_dir():
        raise ValueError(f"{shorten(folder)} is neither a folder nor a .txt file. Layouts: {LAYOUTS}.")
    if (folder / LIST_FILE).exists():
        return {"train": read_list(folder / LIST_FILE, root)}
    folders = visible_folders(folder)
    if [each.name for each in folders] == [IMAGES_FOLDER]:
        folder, folders = folders[0], visible_folders(folders[0])
    splits = {split_of(each.name): each for each in folders}
    if "train" in splits and splits.keys() <= {*SPLITS}:
        if len(splits) < len(folders):
            names = ", ".join(quote(each.name) for each in folders)
            raise ValueError(f"{shorten(folder)} has several folders for one split, {names}: join or remove them.")
        return {str(split): list_folder(each, root) for split, each in splits.items()}
    return {"train": list_folder(folder, root)}


def visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def list_files(root: Path, domain: str) -> dict[str, Path]:
    """Split -> text file that lists the images of a domain; empty if there is none."""
    if domain.endswith(".txt"):
        return {"train": require_path(root / domain, f"Layouts: {LAYOUTS}.")}
    if (root / f"{domain}.txt").is_file():
        return {"train": root / f"{domain}.txt"}
    files = {split: root / f"{domain}_{split}.txt" for split in SPLITS}
    found = {split: file for split, file in files.items() if file.is_file()}
    return found if "train" in found else {}


def list_folder(folder: Path, root: Path) -> Listing:
    """Images of class folders; images of unknown class if there are no folders in the folder."""
    if not visible_folders(folder):
        images = images_below(folder)
        if not images:
            raise ValueError(f"{shorten(folder)} holds no image, such as a .jpg or .png. Layouts: {LAYOUTS}.")
        return Listing([file.removeprefix(os.path.join(root, "")) for file in images], [None] * len(images), ())
    skipped: list[str] = []
    paths, classes = list_images(folder, root, skipped)
    warn_about_skipped(folder, skipped)
    return Listing(paths, list(classes), tuple(sorted(set(classes))))


def read_list(file: Path, root: Path) -> Listing:
    """Reads lines "path label"; paths are relative to root or to the file, labels are integers or absent.

    A class has the name of the folder that holds its images; its number, if a folder holds several classes or a class
    has several folders.

    Raises:
        ValueError: for a line of another form, a path that is too long, or a file without lines.
    """
    paths, labels = [], []
    with open_text(file) as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            match = re.fullmatch(r"(.+?)(?:[\s,]+(\d{1,9}))?", line.strip())
            if match is None or len(line) > LONGEST_PATH or "\0" in line:
                raise ValueError(
                    f"{shorten(file)}, line {number}: expected a path and a label from 0, got {quote(line.strip())}."
                )
            paths.append(match[1])
            labels.append(None if match[2] is None else int(match[2]))
    if not paths:
        raise ValueError(f"{shorten(file)} lists no image: each line needs a path and a label from 0.")
    if None in labels and any(label is not None for label in labels):
        first = quote(paths[labels.index(None)])
        raise ValueError(f"{shorten(file)}: {first} has no label, but other images have one.")
    in_root = os.path.exists(root / paths[0]) or not os.path.exists(file.parent / paths[0])
    folder = "" if in_root else os.path.relpath(file.parent, root)
    names = names_of(paths, labels)
    classes = [None if label is None else names[label] for label in labels]
    return Listing([os.path.join(folder, path) for path in paths], classes, tuple(names.values()))


def names_of(paths: Sequence[str], labels: Sequence[int | None]) -> Mapping[int, str]:
    """Label -> name of the class, in the order of the labels."""
    folders: dict[int, set[str]] = defaultdict(set)
    for path, label in zip(paths, labels, strict=True):
        if label is not None:
            folders[label].add(os.path.basename(os.path.dirname(path)))
    names = [name for found in folders.values() for name in found]
    is_unique = len(set(names)) == len(names) == len(folders) and "" not in names
    return {label: min(folders[label]) if is_unique else str(label) for label in sorted(folders)}
