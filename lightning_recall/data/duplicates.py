"""Images that a data set has twice: a file listed or linked again, or another file or array of the same bytes."""

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
from lightning_recall.data.messages import counted, quote, short

Images = ImageFiles | ImagesInMemory
BLOCK = 4096  # bytes in the middle of a file: they tell most files of one size apart without reading these whole

MERGED = {"paths", "labels", "boxes", "is_query", "is_gallery", "unreadable"}
"""columns in which rows of one file may differ, or that are compared in another way"""


class Duplicates(NamedTuple):
    """What `find_duplicates` found.

    Attributes:
        repeated: for each part, pairs of rows that are the same file: the first one, and one that repeats it.
        warnings: sentences about files that are listed twice, or are copies of each other.
        error: why the data cannot be used; None: they can.
    """

    repeated: list[list[tuple[int, int]]]
    warnings: list[str]
    error: str | None


class Rows:
    """The images of all parts in one table of M rows.

    Args:
        parts: name and images of each.

    Attributes:
        part: (M,) number of each row's part.
        row: (M,) row in its part.
        label: (M,).
        size: (M,) bytes of the file, -1 where there is none, as for images in memory.
        inode: (M,) what is equal for paths that lead to one file, links of both kinds included.
        box: (M,) checksum of the part of the image that is cut out.
    """

    def __init__(self, parts: Sequence[tuple[str, Images]]) -> None:
        self.parts = parts
        self.names = [name for name, _ in parts]
        self.kinds = [name.split()[0] for name in self.names]  # "test small" and "test large" may share images
        counts = [len(data) for _, data in parts]
        self.part = np.repeat(np.arange(len(parts)), counts)
        self.row = np.concatenate([np.arange(count) for count in counts])
        self.label = np.concatenate([data.labels for _, data in parts])
        self.box = np.concatenate([box_checksums(data) for _, data in parts])
        self.size = np.full(len(self.part), -1, dtype=np.int64)
        self.inode = np.zeros(len(self.part), dtype=np.int64)
        is_file = np.repeat([isinstance(data, ImageFiles) for _, data in parts], counts)
        for number in progress(np.flatnonzero(is_file), "Looking up files"):
            try:
                status = os.stat(self.path(number))
            except OSError:
                continue  # reading it will name it
            self.size[number] = status.st_size
            self.inode[number] = hash((status.st_dev, status.st_ino))

    def path(self, number: int) -> str:
        """Path of a row's file."""
        data = self.parts[self.part[number]][1]
        assert isinstance(data, ImageFiles)
        return data.path(self.row[number])

    def name(self, number: int) -> str:
        """What a message calls a row: its path, or its number where it is in memory."""
        is_file = isinstance(self.parts[self.part[number]][1], ImageFiles)
        return short(self.path(number)) if is_file else f"row {self.row[number]}"

    def label_name(self, number: int) -> str:
        """Name of a row's class, its number where the name is not known."""
        names = getattr(self.parts[self.part[number]][1], "class_names", None)
        return quote(short(names[self.label[number]], 60)) if names else str(self.label[number])


def box_checksums(data: Images) -> NDArray[np.int64]:
    """A checksum of the part of each image that is cut out (N,), 0 where no image has one."""
    boxes = getattr(data, "boxes", None)
    if boxes is None:
        return np.zeros(len(data), dtype=np.int64)
    return np.array([zlib.crc32(box.tobytes()) for box in boxes], dtype=np.int64)


def progress(numbers: NDArray[np.int64], what: str) -> "tqdm[int]":
    """A bar that shows after two seconds."""
    return tqdm(numbers.tolist(), f"{what} (check_duplicates=False leaves this out)", delay=2, leave=False)


def grouped(*columns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row of some columns (M,): number of the rows that are equal to it (M,), and how many these are (M,)."""
    order = np.lexsort(columns)
    table = np.stack(columns)[:, order]  # (columns, M), equal rows side by side
    new = np.concatenate([[False], (table[:, 1:] != table[:, :-1]).any(0)])[: len(order)]
    group = np.empty_like(order)
    group[order] = np.cumsum(new)
    return group, np.bincount(group)[group]


def find_duplicates(parts: Sequence[tuple[str, Images]]) -> Duplicates:
    """Looks for images that are there twice.

    Paths are the same file if they lead to one, through links or other spellings. Files are copies if they have the
    same bytes; only files of the same size are read, and most of them only in part. Images in memory are copies if they
    have the same shape and bytes; they are not compared with files.

    Args:
        parts: name of each, which begins with its split, as "training" or "test small", and its images.
    """
    rows = Rows(parts)
    repeated, warnings, error = same_files(rows)
    if error is None:
        kept = np.ones(len(rows.part), dtype=np.bool_)
        for part, pairs in enumerate(repeated):
            kept[np.flatnonzero(rows.part == part)[[row for _, row in pairs]]] = False
        content = np.full(len(kept), -1, dtype=np.int64)
        content[kept] = contents(rows, np.flatnonzero(kept))
        in_memory = memory_contents(parts)
        content[in_memory >= 0] = len(kept) + in_memory[in_memory >= 0]  # equal to no file's
        warnings += copies_within(rows, content) + copies_between(rows, content)
    return Duplicates(repeated, warnings, error)


def same_files(rows: Rows) -> Duplicates:
    """Rows of one file: they are repeated in a part, or an error where their labels or splits differ."""
    repeated: list[list[tuple[int, int]]] = [[] for _ in rows.parts]
    found: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)  # file and box -> part -> its first row there
    _, counts = grouped(rows.inode)
    for number in np.flatnonzero((counts > 1) & (rows.size >= 0)).tolist():
        part = int(rows.part[number])
        firsts = found[os.path.realpath(rows.path(number)), int(rows.box[number])]  # hard links are copies
        elsewhere = [first for other, first in firsts.items() if rows.kinds[other] != rows.kinds[part]]
        if elsewhere:
            names = f"in {rows.names[rows.part[elsewhere[0]]]} and in {rows.names[part]}"
            return Duplicates([], [], f"{one_file(rows, elsewhere[0], number)} {names}: keep it in one of them.")
        first = firsts.setdefault(part, number)
        difference = difference_between(rows, first, number)
        if difference:
            return Duplicates([], [], f"{one_file(rows, first, number)} with {difference}: keep one of them.")
        if first != number:
            repeated[part].append((int(rows.row[first]), int(rows.row[number])))
    warnings = [left_out(rows, part, pairs) for part, pairs in enumerate(repeated) if pairs]
    return Duplicates(repeated, warnings, None)


def difference_between(rows: Rows, one: int, other: int) -> str | None:
    """What two rows of a part that are one file differ in, besides their roles: they cannot become one."""
    if rows.label[one] != rows.label[other]:
        return f"the labels {rows.label_name(one)} and {rows.label_name(other)}"
    data = rows.parts[rows.part[one]][1]
    for name in data.columns:
        values = getattr(data, name, None)
        if values is not None and name not in MERGED:
            first, second = (np.asarray(values[rows.row[number]]) for number in (one, other))
            if not np.array_equal(first, second):
                return f"the {name} {quote(first.tolist())} and {quote(second.tolist())}"
    return None


def left_out(rows: Rows, part: int, pairs: list[tuple[int, int]]) -> str:
    """A sentence about rows that repeat a file."""
    name, data = rows.parts[part]
    start = int(np.argmax(rows.part == part))
    one, other = start + pairs[0][0], start + pairs[0][1]
    is_listed = rows.path(one) == rows.path(other)
    example = f"{rows.name(one)} is listed twice" if is_listed else f"{rows.name(other)} is {rows.name(one)}"
    verb, each = ("is", "it") if len(pairs) == 1 else ("are", "each")
    return (
        f"{name}: {len(pairs):,} of {counted(len(data), 'image')} {verb} left out, as {each} is the same file as an "
        f"earlier one: {example}{', for example' if len(pairs) > 1 else ''}."
    )


def one_file(rows: Rows, one: int, other: int) -> str:
    """The beginning of a sentence about two rows that are one file."""
    if rows.path(one) == rows.path(other):
        return f"{rows.name(one)} is listed twice,"
    return f"{rows.name(one)} and {rows.name(other)} are one file"


def memory_contents(parts: Sequence[tuple[str, Images]]) -> NDArray[np.int64]:
    """A number for the content of each row (M,) that is in memory, equal where shape and bytes are; -1 if unique."""
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


def contents(rows: Rows, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for the content of some rows' files, equal where their bytes and boxes are; -1 where it is unique."""
    content = np.full(len(numbers), -1, dtype=np.int64)
    left = np.flatnonzero(rows.size[numbers] > 0)
    for whole in (False, True):
        size, box = rows.size[numbers[left]], rows.box[numbers[left]]
        left = left[grouped(size, box, content[left])[1] > 1]
        read = left[rows.size[numbers[left]] > BLOCK] if whole else left
        for place in progress(read, "Comparing files"):
            number = numbers[place]
            content[place] = digest(rows.path(number), int(rows.size[number]), whole)
    group, counts = grouped(rows.size[numbers[left]], rows.box[numbers[left]], content[left])
    content[:] = -1
    content[left] = np.where(counts > 1, group, -1)
    return content


def digest(path: str, size: int, whole: bool) -> int:
    """A hash of a file of some size: of all of it, or of the block in its middle."""
    try:
        with open(path, "rb") as file:
            if not whole:
                file.seek(max(0, (size - BLOCK) // 2))
            data = file.read(size if whole else BLOCK)
    except OSError:
        return hash(path)  # like no other; reading the image will name it
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def copies_within(rows: Rows, content: NDArray[np.int64]) -> list[str]:
    """A sentence for each part that has copies of one label, and for each that has copies of different labels."""
    sentences = []
    for part, (name, data) in enumerate(rows.parts):
        numbers = np.flatnonzero((rows.part == part) & (content >= 0))
        _, copies = grouped(content[numbers])
        _, alike = grouped(content[numbers], rows.label[numbers])  # copies of the same label
        for same, marked in ((True, alike > 1), (False, copies > alike)):
            if not marked.any():
                continue
            one = numbers[np.argmax(marked)]
            others = (content[numbers] == content[one]) & ((rows.label[numbers] == rows.label[one]) == same)
            other = next(number for number in numbers[others] if number != one)
            what = "that has the same label" if same else "that has another label"
            sentence = f"{name}: {marked.sum():,} of {len(data):,} images have an exact copy {what}"
            why = ": a search finds such copies first" if rows.kinds[part] != "training" else ""
            sentences.append(f"{sentence}, such as {rows.name(one)} and {rows.name(other)}{why}.")
    return sentences


def copies_between(rows: Rows, content: NDArray[np.int64]) -> list[str]:
    """A sentence for each two parts of different splits that have copies of each other."""
    sentences = []
    for one, other in combinations(range(len(rows.parts)), 2):
        here, there = (np.flatnonzero((rows.part == part) & (content >= 0)) for part in (one, other))
        common = there[np.isin(content[there], content[here])]
        if len(common) and rows.kinds[one] != rows.kinds[other]:
            original = here[content[here] == content[common[0]]][0]
            total = counted(len(rows.parts[other][1]), "image")
            are = "is an exact copy of a" if len(common) == 1 else "are exact copies of"
            images = f"{rows.names[one]} image{'' if len(common) == 1 else 's'}"
            sentences.append(
                f"{rows.names[other]}: {len(common):,} of {total} {are} {images}, such as {rows.name(common[0])} of "
                f"{rows.name(original)}: their scores are not those of unseen images."
            )
    return sentences


def without_repeated(data: Any, repeated: list[tuple[int, int]]) -> Any:
    """Leaves out rows that repeat an earlier one, which is query, and is gallery, where one of them is."""
    if not repeated:
        return data
    kept = np.setdiff1d(np.arange(len(data)), [row for _, row in repeated])
    chosen = data.select(kept, training=data.training)
    for name in ("is_query", "is_gallery"):
        if getattr(data, name) is not None:
            role = np.array(getattr(data, name), dtype=np.bool_)
            for first, row in repeated:
                role[first] |= role[row]
            setattr(chosen, name, role[kept])
    return chosen
