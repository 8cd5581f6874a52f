"""Finds duplicate images: files listed or linked twice, and files or arrays with identical bytes."""

import hashlib
import os
import zlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lightning_recall.data.image_files import ImageFiles
from lightning_recall.data.images_in_memory import ImagesInMemory
from lightning_recall.data.messages import pluralize, quote, shorten

Images = ImageFiles | ImagesInMemory
BLOCK = 4096  # bytes in the middle of a file: enough to distinguish most files of equal size

MERGED = {"paths", "labels", "boxes", "is_query", "is_gallery", "unreadable"}
"""columns that may differ between duplicates, or are compared separately"""


class Duplicates(NamedTuple):
    """What `find_duplicates` found.

    Attributes:
        repeated: for each data set, pairs (first index, duplicate index) of the same file.
        warnings: messages about files that are listed twice, or are copies of each other.
        error: error message if the data cannot be used, or None.
    """

    repeated: list[list[tuple[int, int]]]
    warnings: list[str]
    error: str | None


class ImageTable:
    """A flat table of the M images of several data sets.

    Args:
        parts: the data sets and their names, each of which begins with its split: "training", "test small".

    Attributes:
        part: (M,) number of each image's data set.
        index: (M,) index of each image in its data set.
        label: (M,) label of each image.
        size: (M,) size of each file in bytes; -1 for images in memory and files that cannot be found.
        inode: (M,) hash of (device, inode), equal for hard links and symbolic links to one file.
        box: (M,) checksum of each image's crop box.
    """

    def __init__(self, parts: Sequence[tuple[str, Images]]) -> None:
        self.parts = parts
        self.names = [name for name, _ in parts]
        self.splits = [name.split()[0] for name in self.names]  # "test small" and "test large" may share images
        counts = [len(data) for _, data in parts]
        self.part = np.repeat(np.arange(len(parts)), counts)
        self.index = np.concatenate([np.arange(count) for count in counts])
        self.label = np.concatenate([data.labels for _, data in parts])
        self.box = np.concatenate([box_checksums(data) for _, data in parts])
        self.size = np.full(len(self.part), -1, dtype=np.int64)
        self.inode = np.zeros(len(self.part), dtype=np.int64)
        is_file = np.repeat([isinstance(data, ImageFiles) for _, data in parts], counts)
        for number in progress(np.flatnonzero(is_file), "Looking up files"):
            try:
                status = os.stat(self.path(number))
            except OSError:
                continue  # an error is reported when the image is read
            self.size[number] = status.st_size
            self.inode[number] = hash((status.st_dev, status.st_ino))

    def path(self, number: int) -> str:
        """Path of an image's file."""
        data = self.parts[self.part[number]][1]
        assert isinstance(data, ImageFiles)
        return data.path(self.index[number])

    def name(self, number: int) -> str:
        """Display name of an image: its path, or its index for images in memory."""
        is_file = isinstance(self.parts[self.part[number]][1], ImageFiles)
        return shorten(self.path(number)) if is_file else f"image {self.index[number]}"

    def label_name(self, number: int) -> str:
        """Class name of an image, or its label if the class has no name."""
        names = getattr(self.parts[self.part[number]][1], "class_names", None)
        return quote(shorten(names[self.label[number]], 60)) if names else str(self.label[number])


def box_checksums(data: Images) -> NDArray[np.int64]:
    """Checksums (N,) of the crop boxes; zeros if there are none."""
    boxes = getattr(data, "boxes", None)
    if boxes is None:
        return np.zeros(len(data), dtype=np.int64)
    return np.array([zlib.crc32(box.tobytes()) for box in boxes], dtype=np.int64)


def progress(numbers: NDArray[np.int64], what: str) -> "tqdm[int]":
    """A progress bar that appears after two seconds."""
    return tqdm(numbers.tolist(), f"{what} (skip with check_duplicates=False)", delay=2, leave=False)


def group_equal_rows(*columns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Group id (M,) and group size (M,) of each row of some columns (M,); equal rows form a group."""
    order = np.lexsort(columns)
    table = np.stack(columns)[:, order]  # (columns, M), equal rows side by side
    new = np.concatenate([[False], (table[:, 1:] != table[:, :-1]).any(0)])[: len(order)]
    group = np.empty_like(order)
    group[order] = np.cumsum(new)
    return group, np.bincount(group)[group]


def find_duplicates(parts: Sequence[tuple[str, Images]]) -> Duplicates:
    """Searches for duplicate images.

    Paths are the same file if they resolve to the same real path. Files are copies if they have the same bytes; only
    files of equal size are read, most of them partially. Images in memory are copies if they have the same shape and
    bytes; they are not compared with files.

    Args:
        parts: the data sets and their names, each of which begins with its split: "training", "test small".
    """
    images = ImageTable(parts)
    repeated, warnings, error = same_files(images)
    if error is None:
        kept = np.ones(len(images.part), dtype=np.bool_)
        for part, pairs in enumerate(repeated):
            kept[np.flatnonzero(images.part == part)[[index for _, index in pairs]]] = False
        content = np.full(len(kept), -1, dtype=np.int64)
        content[kept] = content_ids(images, np.flatnonzero(kept))
        in_memory = memory_content_ids(parts)
        content[in_memory >= 0] = len(kept) + in_memory[in_memory >= 0]  # offset, to differ from the ids of files
        warnings += copies_within(images, content) + copies_between(images, content)
    return Duplicates(repeated, warnings, error)


def same_files(images: ImageTable) -> Duplicates:
    """Finds entries of the same file; returns an error if their labels or splits differ."""
    repeated: list[list[tuple[int, int]]] = [[] for _ in images.parts]
    found: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)  # path and box -> part -> first image
    _, counts = group_equal_rows(images.inode)
    for number in np.flatnonzero((counts > 1) & (images.size >= 0)).tolist():
        part = int(images.part[number])
        firsts = found[os.path.realpath(images.path(number)), int(images.box[number])]  # hard links count as copies
        elsewhere = [first for other, first in firsts.items() if images.splits[other] != images.splits[part]]
        if elsewhere:
            names = f"in {images.names[images.part[elsewhere[0]]]} and in {images.names[part]}"
            message = same_file_message(images, elsewhere[0], number)
            return Duplicates([], [], f"{message} {names}: keep it in one of them.")
        first = firsts.setdefault(part, number)
        difference = difference_between(images, first, number)
        if difference:
            message = same_file_message(images, first, number)
            return Duplicates([], [], f"{message} with {difference}: keep one of them.")
        if first != number:
            repeated[part].append((int(images.index[first]), int(images.index[number])))
    warnings = [dropped_message(images, part, pairs) for part, pairs in enumerate(repeated) if pairs]
    return Duplicates(repeated, warnings, None)


def difference_between(images: ImageTable, one: int, other: int) -> str | None:
    """Describes a difference, other than roles, that prevents merging two entries of the same file."""
    if images.label[one] != images.label[other]:
        return f"the labels {images.label_name(one)} and {images.label_name(other)}"
    data = images.parts[images.part[one]][1]
    for name in data.columns:
        values = getattr(data, name, None)
        if values is not None and name not in MERGED:
            first, second = (np.asarray(values[images.index[number]]) for number in (one, other))
            if not np.array_equal(first, second):
                return f"the {name} {quote(first.tolist())} and {quote(second.tolist())}"
    return None


def dropped_message(images: ImageTable, part: int, pairs: list[tuple[int, int]]) -> str:
    """Warning about dropped duplicates."""
    name, data = images.parts[part]
    start = int(np.argmax(images.part == part))
    one, other = start + pairs[0][0], start + pairs[0][1]
    is_listed = images.path(one) == images.path(other)
    example = f"{images.name(one)} is listed twice" if is_listed else f"{images.name(other)} is {images.name(one)}"
    verb = "is" if len(pairs) == 1 else "are"
    return (
        f"{name}: {len(pairs):,} of {pluralize(len(data), 'image')} {verb} dropped, because an earlier entry is the "
        f"same file: {example}{', for example' if len(pairs) > 1 else ''}."
    )


def same_file_message(images: ImageTable, one: int, other: int) -> str:
    """Start of an error message about two entries of one file."""
    if images.path(one) == images.path(other):
        return f"{images.name(one)} is listed twice,"
    return f"{images.name(one)} and {images.name(other)} are one file"


def memory_content_ids(parts: Sequence[tuple[str, Images]]) -> NDArray[np.int64]:
    """Content id (M,) of images in memory, equal for equal shape and bytes; -1 if unique."""
    keys: dict[tuple[Any, int], int] = {}  # shape, and hash of the bytes -> number
    numbers = []
    for _, data in parts:
        if not isinstance(data, ImagesInMemory):
            numbers.append(np.full(len(data), -1, dtype=np.int64))
            continue
        shape = data.images.shape[1:]
        hashes = (hash(image.tobytes()) for image in data.images.numpy())
        numbers.append(np.array([keys.setdefault((shape, value), len(keys)) for value in hashes], dtype=np.int64))
    content = np.concatenate(numbers)
    counts = np.bincount(content[content >= 0], minlength=1)
    return np.where((content >= 0) & (counts[content] > 1), content, -1)


def content_ids(images: ImageTable, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Content id of some images' files, equal for equal bytes and boxes; -1 if unique."""
    content = np.full(len(numbers), -1, dtype=np.int64)
    left = np.flatnonzero(images.size[numbers] > 0)
    for whole in (False, True):
        size, box = images.size[numbers[left]], images.box[numbers[left]]
        left = left[group_equal_rows(size, box, content[left])[1] > 1]
        read = left[images.size[numbers[left]] > BLOCK] if whole else left
        for place in progress(read, "Comparing files"):
            number = numbers[place]
            content[place] = digest(images.path(number), int(images.size[number]), whole)
    group, counts = group_equal_rows(images.size[numbers[left]], images.box[numbers[left]], content[left])
    content[:] = -1
    content[left] = np.where(counts > 1, group, -1)
    return content


def digest(path: str, size: int, whole: bool) -> int:
    """Hash of a whole file of `size` bytes, or of its middle block."""
    try:
        with open(path, "rb") as file:
            if not whole:
                file.seek(max(0, (size - BLOCK) // 2))
            data = file.read(size if whole else BLOCK)
    except OSError:
        return hash(path)  # a unique value; the error is reported when the image is read
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def copies_within(images: ImageTable, content: NDArray[np.int64]) -> list[str]:
    """Warnings about copies within a data set, separately for equal and different labels."""
    sentences = []
    for part, (name, data) in enumerate(images.parts):
        numbers = np.flatnonzero((images.part == part) & (content >= 0))
        _, copies = group_equal_rows(content[numbers])
        _, same_label = group_equal_rows(content[numbers], images.label[numbers])  # copies of the same label
        for is_same, is_copy in ((True, same_label > 1), (False, copies > same_label)):
            if not is_copy.any():
                continue
            one = numbers[np.argmax(is_copy)]
            others = (content[numbers] == content[one]) & ((images.label[numbers] == images.label[one]) == is_same)
            other = next(number for number in numbers[others] if number != one)
            what = "that has the same label" if is_same else "that has another label"
            sentence = f"{name}: {is_copy.sum():,} of {len(data):,} images have an exact copy {what}"
            why = ": copies rank first in retrieval" if images.splits[part] != "training" else ""
            sentences.append(f"{sentence}, such as {images.name(one)} and {images.name(other)}{why}.")
    return sentences


def copies_between(images: ImageTable, content: NDArray[np.int64]) -> list[str]:
    """Warnings about copies between splits."""
    sentences = []
    for one, other in combinations(range(len(images.parts)), 2):
        here, there = (np.flatnonzero((images.part == part) & (content >= 0)) for part in (one, other))
        common = there[np.isin(content[there], content[here])]
        if len(common) and images.splits[one] != images.splits[other]:
            original = here[content[here] == content[common[0]]][0]
            total = pluralize(len(images.parts[other][1]), "image")
            are = "is an exact copy of a" if len(common) == 1 else "are exact copies of"
            originals = f"{images.names[one]} image{'' if len(common) == 1 else 's'}"
            sentences.append(
                f"{images.names[other]}: {len(common):,} of {total} {are} {originals}, such as "
                f"{images.name(common[0])} of {images.name(original)}: scores are inflated if the model has seen them."
            )
    return sentences


def without_repeated(data: Any, repeated: list[tuple[int, int]]) -> Any:
    """Drops duplicates; the kept entry is a query or gallery item if any duplicate was."""
    if not repeated:
        return data
    kept = np.setdiff1d(np.arange(len(data)), [index for _, index in repeated])
    chosen = data.select(kept, training=data.training)
    for name in ("is_query", "is_gallery"):
        if getattr(data, name) is not None:
            role = np.array(getattr(data, name), dtype=np.bool_)
            for first, index in repeated:
                role[first] |= role[index]
            setattr(chosen, name, role[kept])
    return chosen
