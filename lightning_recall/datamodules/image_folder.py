"""Your own images, in a folder for each class."""

from pathlib import Path
from typing import Any

import numpy as np

from lightning_recall.datamodules.base import RetrievalDataModule, held_out_classes
from lightning_recall.datamodules.image_files import ImageFiles, ImageLoading
from lightning_recall.datamodules.tables import existing, numbered

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class ImageFolderDataModule(RetrievalDataModule):
    """Finds other images of a class in a folder of your own.

    Either root holds one folder for each class, and `test_classes` of them, drawn at random by `seed`, are the test; or
    it holds folders `train` and `test` (and perhaps `val`), each with a folder for each class. Images may lie in
    sub-folders of their class; what is hidden, and `__MACOSX`, does not count. With `query` and `gallery` instead of
    `test`, the images of the first search those of the second. `val_classes` of the training classes are set aside for
    validation, unless there is `val`.

    Args:
        root: the folder.
        test_classes: a share of the classes, or a number; only for folders without `train` and `test`.
        images: how files become tensors.
        kwargs: for `RetrievalDataModule`.

    Raises:
        ValueError: for no folder, parts without `train`, too few classes, a class without images, or one class in two
            parts; when the data are set up.
    """

    def __init__(self, root: str, test_classes: float = 0.2, images: ImageLoading | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.test_classes = test_classes
        self.images = images or ImageLoading()

    def read(self) -> dict[str, ImageFiles]:
        """The parts that there are folders of, or classes drawn at random."""
        existing(self.root, "Give the folder that holds a folder of images for each class as root.")
        folders = {name: self.root / name for name in ("train", "val", "test", "query", "gallery")}
        parts = {name: folder for name, folder in folders.items() if folder.is_dir()}
        if parts and "train" not in parts:
            raise ValueError(
                f"{self.root} holds {' and '.join(parts)}, but no train. It needs a folder for each class, of another "
                "name; or train and test, or train, query and gallery, each with a folder for each class."
            )
        if not parts:
            paths, classes = list_images(self.root, self.root)
            (labels,) = numbered(classes)
            data = ImageFiles(self.root, paths, labels, loading=self.images)
            return split_classes(data, self.test_classes, self.seed)
        names: list[str] = []
        paths, classes = [], []
        for name, folder in parts.items():
            more = list_images(folder, self.root)
            names, paths, classes = names + [name] * len(more[0]), paths + more[0], classes + more[1]
        return split_parts(self.root, names, paths, classes, self.images)


def list_images(folder: Path, root: Path) -> tuple[list[str], list[str]]:
    """Paths, from root, and classes of the images in the folders of a folder."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not hidden(entry.name))
    paths: list[str] = []
    names: list[str] = []
    for entry in classes:
        found = (file for file in entry.rglob("*") if file.suffix.lower() in SUFFIXES and not file.is_dir())
        images = sorted(file for file in found if not any(map(hidden, file.relative_to(entry).parts)))
        if not images:
            raise ValueError(f"{entry} holds no image ({', '.join(sorted(SUFFIXES))}): remove the folder, or fill it.")
        paths += [str(file.relative_to(root)) for file in images]
        names += [entry.name] * len(images)
    if not paths:
        raise ValueError(f"{folder} holds no folder: each class needs one, with its images.")
    return paths, names


def hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: of macOS, of an editor, of a version control."""
    return name.startswith(".") or name == "__MACOSX"


def split_classes(data: ImageFiles, test_classes: float, seed: int) -> dict[str, ImageFiles]:
    """Some classes for the test, the others for training.

    Raises:
        ValueError: for fewer than 4 classes, or a number that leaves too few.
    """
    count = len(np.unique(data.labels))
    if count < 4:
        raise ValueError(
            f"{data.root} holds {count} {'class' if count == 1 else 'classes'}: training needs 2, validation and test "
            "one each, and all should have many more."
        )
    test = held_out_classes(data.labels, test_classes, seed, "test_classes", "test")
    return {"train": data.select(~test), "test": data.select(test)}


def split_parts(
    root: Path, parts: list[str], paths: list[str], classes: list[str], loading: ImageLoading
) -> dict[str, ImageFiles]:
    """Rows of an image each, told which part they belong to: train, val, test, or query and gallery.

    Raises:
        ValueError: if a class is in two parts, or only one of query and gallery is there, or these beside test.
    """
    part = np.array(parts)
    (labels,) = numbered(classes)
    data = ImageFiles(root, paths, labels, loading=loading)
    searched = {"query", "gallery"} & set(parts)
    if searched and (len(searched) < 2 or "test" in parts):
        raise ValueError(f"{root} has {' and '.join(sorted(set(parts)))}: a test is `test`, or `query` and `gallery`.")
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
            example = classes[int(np.flatnonzero(labels == both[0])[0])]
            raise ValueError(
                f"{root}: {len(both)} classes are in {name} and in {other}, such as {example!r}. Retrieval is judged "
                "on classes that the training has not seen: give different ones."
            )
    return split
