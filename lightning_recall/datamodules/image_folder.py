"""Your own images in one folder per class."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from lightning_recall._lightning import rank_zero_warn
from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.data.folders import SPLIT_NAMES, SPLIT_OF, image_suffixes, is_hidden, split_of
from lightning_recall.data.messages import pluralize, quote, shorten
from lightning_recall.data.tables import require_path, user_path
from lightning_recall.datamodules.base import RetrievalDataModule, prepares_data
from lightning_recall.datamodules.splits import (
    MIN_CLASSES,
    check_class_names,
    check_split_like_names,
    image_files,
    split_by_name,
    split_classes,
)


class ImageFolderDataModule(RetrievalDataModule):
    """Data module for a folder of images with one subfolder per class.

    There are two layouts:

    - Root holds one folder per class. Randomly drawn classes form the test set: `test_classes` is their fraction or
      number, `seed` the random seed.
    - Root holds folders `train` and `test` (and optionally `val`), each with one folder per class. With folders `query`
      and `gallery` instead of `test`, the gallery is searched for each query. Splits may also be called training,
      valid, validation, dev, testing or queries, in upper or lower case.

    Unless there is a folder `val`, randomly drawn training classes are held out for validation (`val_classes` is their
    fraction or number). Images may be in subfolders of their class. Symbolic links are followed; hidden and system
    files are ignored. Files with a suffix that Pillow can decode are read; other files in class folders are reported.

    Args:
        root: the folder; ~ is the home folder.
        test_classes: fraction or number of classes; only for folders without `train` and `test`.
        transforms: image loading and transforms.
        kwargs: passed to `RetrievalDataModule`.

    Raises:
        ValueError: if root is not a folder; at setup, if `train` is missing, there is an unknown folder next to
            `train`, there are too few classes, a class has no images, or a class is in two splits.
    """

    def __init__(
        self,
        root: str,
        test_classes: float = 0.2,
        transforms: ImageTransforms | None = ImageTransforms(),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = user_path(root)
        self.test_classes = test_classes
        self.transforms = transforms or ImageTransforms()
        if not prepares_data(self):
            self.check_root()

    def check_root(self) -> None:
        """Raises ValueError unless root is a folder; the constructor calls it, unless `prepare_data` makes the data."""
        advice = "pass a folder that holds one folder of images per class as root."
        if not require_path(self.root, advice.capitalize()).is_dir():
            raise ValueError(f"{shorten(self.root)} is a file: {advice}")

    def read(self) -> dict[str, ImageFiles]:
        """Reads the split folders, or splits classes at random."""
        self.check_root()
        folders = split_folders(self.root)
        names: list[str] = []
        paths: list[str] = []
        classes: list[str] = []
        skipped: list[str] = []
        for name, folder in (folders or {"": self.root}).items():
            listed_paths, listed_classes = list_images(folder, self.root, skipped)
            names += [name] * len(listed_paths)
            paths += listed_paths
            classes += listed_classes
        check_class_names(classes, self.root)
        if skipped:
            suffixes = sorted({os.path.splitext(file)[1].lower() or "none" for file in skipped})
            ignored = pluralize(len(skipped), "file is", "files are")
            first = "It is" if len(skipped) == 1 else "The first is"
            kinds = "Suffix" if len(suffixes) == 1 else "Suffixes"
            rank_zero_warn(
                f"{shorten(self.root)}: {ignored} ignored: outside the class folders, or not an image format that "
                f"Pillow decodes. {first} {shorten(skipped[0])}. {kinds}: "
                f"{', '.join(suffix[:10] for suffix in suffixes[:6])}{' and others' if len(suffixes) > 6 else ''}."
            )
        if folders:
            return split_by_name(self.root, names, paths, classes, self.transforms)
        check_folder_below(self.root, paths)
        data = image_files(self.root, paths, classes, self.transforms)
        return split_classes(data, self.test_classes, self.seed)


def split_folders(root: Path) -> dict[str, Path]:
    """Folder of each split, in the order of `SPLIT_NAMES`; empty if root holds class folders.

    Raises:
        ValueError: for splits without train, two folders of one split, or an unknown folder next to train.
    """
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    found: dict[str, Path] = {}
    for folder in folders:
        split = split_of(folder.name)
        if split in found:
            raise ValueError(
                f"{shorten(root)} holds {found[split].name} and {folder.name}, which are the same split: keep one."
            )
        if split:
            found[split] = folder
    splits = {split: found[split] for split in SPLIT_NAMES if split in found}
    if splits and "train" not in splits:
        names = " and ".join(folder.name for folder in splits.values())
        raise ValueError(
            f"{shorten(root)} has {names} but no train folder. Use either one folder per class (not named like a "
            "split), or the folders train and test, or train, query and gallery, each with one folder per class."
        )
    unknown = [folder.name for folder in folders if folder not in found.values()]
    if splits and unknown:
        raise ValueError(
            f"{shorten(root)} holds {splits['train'].name} and {quote(unknown[0])}, which is not a split. Allowed "
            f"folders next to {splits['train'].name} are "
            f"{', '.join(name for name in SPLIT_OF if SPLIT_OF[name] != 'train')}. If {splits['train'].name} is a "
            "class, rename it."
        )
    if not splits:
        check_split_like_names(unknown, root)
    return splits


def check_folder_below(root: Path, paths: list[str]) -> None:
    """Raises ValueError if root seems to be one level too high: it has few folders, and one of them holds classes.

    Args:
        root: the folder that was given.
        paths: its images, relative to it.
    """
    folders = [path.split(os.sep)[:-1] for path in paths]  # without the file
    too_few = len({folder[0] for folder in folders}) < MIN_CLASSES
    for name in dict.fromkeys(folder[0] for folder in folders) if too_few else ():
        inside = [folder[1:] for folder in folders if folder[0] == name]
        below = {folder[0] for folder in inside if folder}
        if all(inside) and len(below) > 1:
            raise ValueError(
                f"{shorten(root)} holds {pluralize(len({folder[0] for folder in folders}), 'folder')}, and its folder "
                f"{quote(name)} holds {len(below)}, such as {quote(min(below))}. If these are the classes or the "
                f"splits, pass {shorten(root / name)} as root."
            )


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
