"""Your own images in one folder per class."""

import os
from pathlib import Path
from typing import Any

from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.data.folders import (
    SPLIT_NAMES,
    SPLIT_OF,
    is_hidden,
    list_images,
    split_of,
    warn_about_skipped,
)
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
        warn_about_skipped(self.root, skipped)
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
