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

MERGEABLE_COLUMNS = {"paths", "labels", "boxes", "is_query", "is_gallery", "unreadable"}
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


class AllImages:
    """The M images of several data sets, as one table.

    Args:
        datasets: pairs (name, data set); names begin with the split: "training", "test small".

    Attributes:
        dataset_numbers: (M,) number of each image's data set.
        indices: (M,) index of each image in its data set.
        labels: (M,) label of each image.
        sizes: (M,) size of each file in bytes; -1 for images in memory and files that cannot be found.
        inodes: (M,) hash of (device, inode), equal for hard links and symbolic links to one file.
        boxes: (M,) checksum of each image's crop box.
    """

    def __init__(self, datasets: Sequence[tuple[str, Images]]) -> None:
        self.names = [name for name, _ in datasets]
        self.datasets = [data for _, data in datasets]
        self.splits = [name.split()[0] for name in self.names]  # "test small" and "test large" may share images
        counts = [len(data) for data in self.datasets]
        self.dataset_numbers = np.repeat(np.arange(len(datasets)), counts)
        self.indices = np.concatenate([np.arange(count) for count in counts])
        self.labels = np.concatenate([data.labels for data in self.datasets])
        self.boxes = np.concatenate([box_checksums(data) for data in self.datasets])
        self.sizes = np.full(len(self.indices), -1, dtype=np.int64)
        self.inodes = np.zeros(len(self.indices), dtype=np.int64)
        is_file = np.repeat([isinstance(data, ImageFiles) for data in self.datasets], counts)
        for number in progress(np.flatnonzero(is_file), "Looking up files"):
            try:
                status = os.stat(self.path(number))
            except OSError:
                continue  # an error is reported when the image is read
            self.sizes[number] = status.st_size
            self.inodes[number] = hash((status.st_dev, status.st_ino))

    def dataset_of(self, number: int) -> Images:
        """Data set of an image."""
        return self.datasets[int(self.dataset_numbers[number])]

    def path(self, number: int) -> str:
        """Path of an image's file."""
        data = self.dataset_of(number)
        assert isinstance(data, ImageFiles)
        return data.path(self.indices[number])

    def name(self, number: int) -> str:
        """Display name of an image: its path, or its index for images in memory."""
        is_file = isinstance(self.dataset_of(number), ImageFiles)
        return shorten(self.path(number)) if is_file else f"image {self.indices[number]}"

    def label_name(self, number: int) -> str:
        """Class name of an image, or its label if the class has no name."""
        names = getattr(self.dataset_of(number), "class_names", None)
        return quote(shorten(names[self.labels[number]], 60)) if names else str(self.labels[number])


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
    """Groups equal rows of the columns (M,); returns the group id (M,) and group size (M,) of each row."""
    order = np.lexsort(columns)
    table = np.stack(columns)[:, order]  # (columns, M), equal rows side by side
    new = np.concatenate([[False], (table[:, 1:] != table[:, :-1]).any(0)])[: len(order)]
    group = np.empty_like(order)
    group[order] = np.cumsum(new)
    return group, np.bincount(group)[group]


def find_duplicates(datasets: Sequence[tuple[str, Images]]) -> Duplicates:
    """Searches for duplicate images.

    Two paths refer to the same file if they resolve to the same real path. Files are copies if they have the same
    bytes; only files of equal size are read, most of them partially. Images in memory are copies if they have the same
    shape and bytes; they are not compared with files.

    Args:
        datasets: pairs (name, data set); names begin with the split: "training", "test small".
    """
    images = AllImages(datasets)
    repeated, warnings, error = same_files(images)
    if error is None:
        is_kept = np.ones(len(images.indices), dtype=np.bool_)
        for dataset_number, pairs in enumerate(repeated):
            is_kept[np.flatnonzero(images.dataset_numbers == dataset_number)[[index for _, index in pairs]]] = False
        content_ids = np.full(len(is_kept), -1, dtype=np.int64)
        content_ids[is_kept] = file_content_ids(images, np.flatnonzero(is_kept))
        in_memory = memory_content_ids(images.datasets)
        content_ids[in_memory >= 0] = len(is_kept) + in_memory[in_memory >= 0]  # offset, to differ from ids of files
        warnings += copies_within(images, content_ids) + copies_between(images, content_ids)
    return Duplicates(repeated, warnings, error)


def same_files(images: AllImages) -> Duplicates:
    """Finds entries of the same file; returns an error if their labels or splits differ."""
    repeated: list[list[tuple[int, int]]] = [[] for _ in images.datasets]
    firsts_of_file: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)  # path and box -> data set -> first image
    _, counts = group_equal_rows(images.inodes)
    for number in np.flatnonzero((counts > 1) & (images.sizes >= 0)).tolist():
        dataset_number = int(images.dataset_numbers[number])
        path = os.path.realpath(images.path(number))  # hard links count as copies
        first_images = firsts_of_file[path, int(images.boxes[number])]
        for other_dataset, other in first_images.items():
            if images.splits[other_dataset] != images.splits[dataset_number]:
                message = same_file_message(images, other, number)
                names = f"in {images.names[other_dataset]} and in {images.names[dataset_number]}"
                return Duplicates([], [], f"{message}, {names}: keep it in one of them.")
        first = first_images.setdefault(dataset_number, number)
        difference = difference_between(images, first, number)
        if difference:
            message = same_file_message(images, first, number)
            return Duplicates([], [], f"{message}, but with {difference}: keep one of them.")
        if first != number:
            repeated[dataset_number].append((int(images.indices[first]), int(images.indices[number])))
    warnings = [dropped_message(images, number, pairs) for number, pairs in enumerate(repeated) if pairs]
    return Duplicates(repeated, warnings, None)


def difference_between(images: AllImages, one: int, other: int) -> str | None:
    """Describes the first difference that prevents merging two entries of the same file; None if there is none."""
    if images.labels[one] != images.labels[other]:
        return f"the labels {images.label_name(one)} and {images.label_name(other)}"
    data = images.dataset_of(one)
    for name in data.columns:
        values = getattr(data, name, None)
        if values is not None and name not in MERGEABLE_COLUMNS:
            first, second = (np.asarray(values[images.indices[number]]) for number in (one, other))
            if not np.array_equal(first, second):
                return f"the {name} {quote(first.tolist())} and {quote(second.tolist())}"
    return None


def dropped_message(images: AllImages, dataset_number: int, pairs: list[tuple[int, int]]) -> str:
    """Warning about dropped duplicates."""
    start = int(np.argmax(images.dataset_numbers == dataset_number))
    example = same_file_message(images, start + pairs[0][0], start + pairs[0][1])
    total = pluralize(len(images.datasets[dataset_number]), "image")
    return (
        f"{images.names[dataset_number]}: {len(pairs):,} of {total} "
        f"{'is dropped as a duplicate of an earlier entry' if len(pairs) == 1 else 'are dropped as duplicates'}: "
        f"{example}{', for example' if len(pairs) > 1 else ''}."
    )


def same_file_message(images: AllImages, one: int, other: int) -> str:
    """Start of a message about two entries of the same file."""
    if images.path(one) == images.path(other):
        return f"{images.name(one)} is listed twice"
    return f"{images.name(one)} and {images.name(other)} are the same file"


def memory_content_ids(datasets: Sequence[Images]) -> NDArray[np.int64]:
    """Content id (M,) of images in memory, equal for equal shape and bytes; -1 if unique."""
    keys: dict[tuple[Any, int], int] = {}  # shape, and hash of the bytes -> number
    numbers = []
    for data in datasets:
        if not isinstance(data, ImagesInMemory):
            numbers.append(np.full(len(data), -1, dtype=np.int64))
            continue
        shape = data.images.shape[1:]
        hashes = (hash(image.tobytes()) for image in data.images.numpy())
        numbers.append(np.array([keys.setdefault((shape, value), len(keys)) for value in hashes], dtype=np.int64))
    content = np.concatenate(numbers)
    counts = np.bincount(content[content >= 0], minlength=1)
    return np.where((content >= 0) & (counts[content] > 1), content, -1)


def file_content_ids(images: AllImages, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Content ids (m,) of the files of some images: equal if bytes and boxes are equal, -1 if unique."""
    content = np.full(len(numbers), -1, dtype=np.int64)
    sizes, boxes = images.sizes[numbers], images.boxes[numbers]
    remaining = np.flatnonzero(sizes > 0)
    for whole_file in (False, True):
        _, counts = group_equal_rows(sizes[remaining], boxes[remaining], content[remaining])
        remaining = remaining[counts > 1]
        to_read = remaining[sizes[remaining] > BLOCK] if whole_file else remaining
        for position in progress(to_read, "Comparing files"):
            content[position] = digest(images.path(numbers[position]), int(sizes[position]), whole_file)
    group, counts = group_equal_rows(sizes[remaining], boxes[remaining], content[remaining])
    content[:] = -1
    content[remaining] = np.where(counts > 1, group, -1)
    return content


def digest(path: str, size: int, whole_file: bool) -> int:
    """Hash of a whole file of `size` bytes, or of its middle block."""
    try:
        with open(path, "rb") as file:
            if not whole_file:
                file.seek(max(0, (size - BLOCK) // 2))
            data = file.read(size if whole_file else BLOCK)
    except OSError:
        return hash(path)  # a unique value; the error is reported when the image is read
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def copies_within(images: AllImages, content_ids: NDArray[np.int64]) -> list[str]:
    """Warnings about copies within a data set, separately for equal and different labels."""
    sentences = []
    for dataset_number, (name, data) in enumerate(zip(images.names, images.datasets, strict=True)):
        numbers = np.flatnonzero((images.dataset_numbers == dataset_number) & (content_ids >= 0))
        contents, labels = content_ids[numbers], images.labels[numbers]
        _, copy_counts = group_equal_rows(contents)
        _, same_label_counts = group_equal_rows(contents, labels)  # copies with the same label
        for is_same, is_copy in ((True, same_label_counts > 1), (False, copy_counts > same_label_counts)):
            if not is_copy.any():
                continue
            one = numbers[np.argmax(is_copy)]
            others = (contents == content_ids[one]) & ((labels == images.labels[one]) == is_same)
            other = next(number for number in numbers[others] if number != one)
            what = "that has the same label" if is_same else "that has another label"
            sentence = f"{name}: {is_copy.sum():,} of {len(data):,} images have an exact copy {what}"
            why = ": copies rank first in retrieval" if images.splits[dataset_number] != "training" else ""
            sentences.append(f"{sentence}, such as {images.name(one)} and {images.name(other)}{why}.")
    return sentences


def copies_between(images: AllImages, content_ids: NDArray[np.int64]) -> list[str]:
    """Warnings about copies between splits."""
    sentences = []
    for one, other in combinations(range(len(images.datasets)), 2):
        originals, candidates = (
            np.flatnonzero((images.dataset_numbers == dataset) & (content_ids >= 0)) for dataset in (one, other)
        )
        common = candidates[np.isin(content_ids[candidates], content_ids[originals])]
        if len(common) and images.splits[one] != images.splits[other]:
            original = originals[content_ids[originals] == content_ids[common[0]]][0]
            total = pluralize(len(images.datasets[other]), "image")
            are = "is an exact copy of a" if len(common) == 1 else "are exact copies of"
            sources = f"{images.names[one]} image{'' if len(common) == 1 else 's'}"
            sentences.append(
                f"{images.names[other]}: {len(common):,} of {total} {are} {sources}, such as "
                f"{images.name(common[0])}, a copy of {images.name(original)}: scores are inflated if the model has "
                "seen them."
            )
    return sentences


def without_repeated(data: Any, repeated: list[tuple[int, int]]) -> Any:
    """Drops duplicates; the kept entry gets the roles of all its duplicates."""
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
