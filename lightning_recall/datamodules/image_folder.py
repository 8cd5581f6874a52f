"""Your own images, in a folder for each class."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from lightning_recall._lightning import rank_zero_warn
from lightning_recall.data.image_files import ImageFiles, ImageTransforms
from lightning_recall.data.messages import counted, quote, short
from lightning_recall.data.tables import require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule
from lightning_recall.datamodules.splits import (
    PART_NAMES,
    PART_OF,
    check_class_names,
    check_look_alikes,
    image_files,
    part_of,
    split_classes,
    split_parts,
)

NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}  # Pillow opens them, but needs other programs
SYSTEM_FILES = {"__macosx", "thumbs.db", "desktop.ini"}


class ImageFolderDataModule(RetrievalDataModule):
    """Finds other images of a class in a folder of your own.

    Either root holds one folder for each class, and `test_classes` of them, drawn at random by `seed`, are the test; or
    it holds folders `train` and `test` (and perhaps `val`), each with a folder for each class. Images may lie in
    sub-folders of their class, linked ones too; hidden files, and those of operating systems, do not count. With
    `query` and `gallery` instead of `test`, the images of the first search those of the second. `val_classes` of the
    training classes are set aside for validation, unless there is `val`. Parts may also be called training, valid,
    validation, dev, testing or queries, in upper or lower case.

    Files are read whose suffix belongs to a format that Pillow decodes; others in the folders of classes are counted.

    Args:
        root: the folder; ~ is the home folder.
        test_classes: a share of the classes, or a number; only for folders without `train` and `test`.
        transforms: how files become tensors.
        kwargs: for `RetrievalDataModule`.

    Raises:
        ValueError: for no folder, parts without `train`, a folder beside `train` that is no part, too few classes, a
            class without images, or one class in two parts; when the data are set up.
    """

    def __init__(
        self, root: str, test_classes: float = 0.2, transforms: ImageTransforms | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.test_classes = test_classes
        self.transforms = transforms or ImageTransforms()

    def read(self) -> dict[str, ImageFiles]:
        """The parts that there are folders of, or classes drawn at random."""
        if not require_path(
            self.root, "Give the folder that holds a folder of images for each class as root."
        ).is_dir():
            raise ValueError(
                f"{short(self.root)} is a file: give the folder that holds a folder of images for each class."
            )
        parts = part_folders(self.root)
        names: list[str] = []
        paths: list[str] = []
        classes: list[str] = []
        skipped: list[str] = []
        for name, folder in (parts or {"": self.root}).items():
            more = list_images(folder, self.root, skipped)
            names, paths, classes = names + [name] * len(more[0]), paths + more[0], classes + more[1]
        check_class_names(classes, self.root)
        if skipped:
            suffixes = sorted({os.path.splitext(file)[1].lower() or "none" for file in skipped})
            left_out = counted(len(skipped), "file is", "files are")
            first = "It is" if len(skipped) == 1 else "The first is"
            kinds = "Suffix" if len(suffixes) == 1 else "Suffixes"
            rank_zero_warn(
                f"{short(self.root)}: {left_out} left out: beside the folders of the classes, or with a suffix of no "
                f"image format that Pillow decodes. {first} {short(skipped[0])}. {kinds}: "
                f"{', '.join(suffix[:10] for suffix in suffixes[:6])}{' and others' if len(suffixes) > 6 else ''}."
            )
        if parts:
            return split_parts(self.root, names, paths, classes, self.transforms)
        data = image_files(self.root, paths, classes, self.transforms)
        return split_classes(data, self.test_classes, self.seed)


def part_folders(root: Path) -> dict[str, Path]:
    """The folder of each part, in the order of `PART_NAMES`; none where root holds the classes.

    Raises:
        ValueError: for parts without train, two folders of one part, or a folder beside train that is no part.
    """
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not hidden(entry.name))
    found: dict[str, Path] = {}
    for folder in folders:
        part = part_of(folder.name)
        if part in found:
            raise ValueError(
                f"{short(root)} holds {found[part].name} and {folder.name}, which are the same part: keep one."
            )
        if part:
            found[part] = folder
    parts = {part: found[part] for part in PART_NAMES if part in found}
    if parts and "train" not in parts:
        names = " and ".join(folder.name for folder in parts.values())
        raise ValueError(
            f"{short(root)} holds {names}, but no train. It needs a folder for each class, of another name; or train "
            "and test, or train, query and gallery, each with a folder for each class."
        )
    unknown = [folder.name for folder in folders if folder not in found.values()]
    if parts and unknown:
        raise ValueError(
            f"{short(root)} holds {parts['train'].name} and {quote(unknown[0])}, which is no part. Beside it there may "
            f"be {', '.join(name for name in PART_OF if PART_OF[name] != 'train')}. If {parts['train'].name} is a "
            "class, give it another name."
        )
    if not parts:
        check_look_alikes(unknown, root)
    return parts


def list_images(folder: Path, root: Path, skipped: list[str]) -> tuple[list[str], list[str]]:
    """Paths, from root, and classes of the images in the folders of a folder; adds other files to `skipped`."""
    entries = sorted(entry for entry in folder.iterdir() if not hidden(entry.name))
    skipped += [str(entry) for entry in entries if entry.suffix.lower() in suffixes() and not entry.is_dir()]
    paths: list[str] = []
    names: list[str] = []
    for entry in entries:
        if not entry.is_dir():
            continue
        files = sorted(files_below(str(entry)), key=lambda file: file.split(os.sep))
        images = [file for file in files if os.path.splitext(file)[1].lower() in suffixes()]
        others = [file for file in files if os.path.splitext(file)[1].lower() not in suffixes()]
        if not images:
            found = f" It holds {counted(len(others), 'other file')}, such as {short(others[0])}." if others else ""
            raise ValueError(
                f"{short(entry)} holds no image, such as a .jpg or .png: remove the folder, or fill it.{found}"
            )
        paths += [file.removeprefix(os.path.join(root, "")) for file in images]
        names += [entry.name] * len(images)
        skipped += others
    if not paths:
        raise ValueError(f"{short(folder)} holds no folder: each class needs one, with its images.")
    return paths, names


def files_below(folder: str) -> Iterator[str]:
    """Files in a folder and its sub-folders, hidden ones left out; a folder that several links lead to comes once.

    Raises:
        ValueError: for a folder that cannot be read, or a link back to a parent of the folder: it leads to the images
            of other classes.
    """
    seen: set[str] = set()
    parent = os.path.join(os.path.realpath(os.path.dirname(folder)), "")
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        if parent.startswith(os.path.join(real, "")):
            raise ValueError(
                f"{short(place)} is a link that leads back to its parent folder {short(real)}, and so to the images of "
                "other classes: remove it."
            )
        seen.add(real)
        folders[:] = sorted(name for name in folders if not hidden(name))
        yield from (os.path.join(place, file) for file in files if not hidden(file))


def refuse(error: OSError) -> NoReturn:
    """Raises ValueError for a folder that cannot be read: its images would be missing without a word."""
    raise ValueError(f"Cannot read the folder {short(error.filename)}: {error.strerror}.") from error


@cache
def suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the formats that Pillow decodes without other programs."""
    decoded = Image.registered_extensions().items()  # loads Pillow's plugins
    known = {suffix for suffix, name in decoded if name in Image.OPEN and name not in NOT_DECODED}
    return frozenset(known | {".mpo"})  # JPEG files of several images


def hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: of an operating system, an editor, a version control."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES
