"""Lists the images in folders of the user: what counts as an image file, and which folder names are splits."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NoReturn

from PIL import Image

from lightning_recall._lightning import rank_zero_warn
from lightning_recall.data.messages import pluralize, shorten

NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""formats that Pillow opens, but decodes only with other programs"""
SYSTEM_FILES = {"__macosx", "thumbs.db", "desktop.ini"}
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
    "query": ("query", "queries"),
    "gallery": ("gallery",),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
"""lower-case name -> split"""


def split_of(name: str) -> str | None:
    """Split that a folder name or CSV cell denotes (case-insensitive): a key of `SPLIT_NAMES`; None for other names.

    >>> split_of("Valid"), split_of("birds")
    ('val', None)
    """
    return SPLIT_OF.get(name.lower())


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the formats that Pillow decodes without other programs."""
    extensions = Image.registered_extensions().items()  # loads Pillow's plugins
    known = {suffix for suffix, name in extensions if name in Image.OPEN and name not in NOT_DECODED}
    return frozenset(known | {".mpo"})  # JPEG files with several images


def is_hidden(name: str) -> bool:
    """Whether a name is hidden or belongs to the operating system, an editor or version control."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def images_below(folder: Path) -> list[str]:
    """Sorted paths of the image files in a folder and its subfolders."""
    return sorted(file for file in files_below(str(folder)) if os.path.splitext(file)[1].lower() in image_suffixes())


def list_images(folder: Path, root: Path, skipped: list[str]) -> tuple[list[str], list[str]]:
    """Lists image paths (relative to root) and classes of the class folders; appends other files to `skipped`."""
    entries = sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))
    skipped += [str(entry) for entry in entries if entry.suffix.lower() in image_suffixes() and not entry.is_dir()]
    paths: list[str] = []
    names: list[str] = []
    for entry in entries:
        if not entry.is_dir():
            continue
        files = sorted(files_below(str(entry)), key=lambda file: file.split(os.sep))
        images = [file for file in files if os.path.splitext(file)[1].lower() in image_suffixes()]
        others = [file for file in files if os.path.splitext(file)[1].lower() not in image_suffixes()]
        if not images:
            found = f" It holds {pluralize(len(others), 'other file')}, such as {shorten(others[0])}." if others else ""
            raise ValueError(
                f"{shorten(entry)} holds no image, such as a .jpg or .png: remove the folder or add images.{found}"
            )
        paths += [file.removeprefix(os.path.join(root, "")) for file in images]
        names += [entry.name] * len(images)
        skipped += others
    if not paths:
        raise ValueError(f"{shorten(folder)} holds no folder: each class needs a folder with its images.")
    return paths, names


def files_below(folder: str) -> Iterator[str]:
    """Yields non-hidden files recursively; a folder with several links to it is visited once.

    Raises:
        ValueError: for a folder that cannot be read, or a symbolic link to a parent folder, which would include other
            classes.
    """
    seen: set[str] = set()
    parent = os.path.join(os.path.realpath(os.path.dirname(folder)), "")
    for path, folders, files in os.walk(folder, followlinks=True, onerror=raise_unreadable_folder):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        if parent.startswith(os.path.join(real, "")):
            raise ValueError(
                f"{shorten(path)} is a link to its parent folder {shorten(real)}, which would include other classes: "
                "remove it."
            )
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (os.path.join(path, file) for file in files if not is_hidden(file))


def raise_unreadable_folder(error: OSError) -> NoReturn:
    """Raises ValueError for a folder that cannot be read, so that its images are not silently missing."""
    raise ValueError(f"Cannot read the folder {shorten(error.filename)}: {error.strerror}.") from error


def warn_about_skipped(root: Path, skipped: list[str]) -> None:
    """Warns how many files of a folder are ignored, and names their kinds.

    Args:
        root: the folder.
        skipped: paths of the files.
    """
    if not skipped:
        return
    suffixes = sorted({os.path.splitext(file)[1].lower() or "none" for file in skipped})
    ignored = pluralize(len(skipped), "file is", "files are")
    first = "It is" if len(skipped) == 1 else "The first is"
    kinds = "Suffix" if len(suffixes) == 1 else "Suffixes"
    rank_zero_warn(
        f"{shorten(root)}: {ignored} ignored: outside the class folders, or not an image format that "
        f"Pillow decodes. {first} {shorten(skipped[0])}. {kinds}: "
        f"{', '.join(suffix[:10] for suffix in suffixes[:6])}{' and others' if len(suffixes) > 6 else ''}."
    )
