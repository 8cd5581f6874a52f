"""Reads all masks before training: sizes, values, and how frequent each class is."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from lightning_recall.data.messages import pluralize, shorten
from lightning_recall.pil_preprocessing import check_depth
from lightning_recall.segmentation.data.files import SegmentationFiles, size_message
from lightning_recall.segmentation.data.masks import IGNORED_PIXEL

MAX_THREADS = 8
ORIENTATION_TAG = 0x0112
TURNED_ORIENTATIONS = (5, 6, 7, 8)  # EXIF values that swap width and height
IMAGE_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""last bytes of a complete file"""


@dataclass
class MaskSummary:
    """What the masks of a data set hold.

    Attributes:
        pixel_counts: (C,) pixels of each class.
        num_ignored: number of ignored pixels.
        sizes: distinct (height, width) of the images.
        errors: a sentence for each file that cannot be used, in the order of the data set.
        void_masks: paths of the masks in which every pixel is ignored.
    """

    pixel_counts: NDArray[np.int64]
    num_ignored: int
    sizes: set[tuple[int, int]]
    errors: list[str]
    void_masks: list[str]

    @property
    def class_frequencies(self) -> NDArray[np.float64]:
        """(C,) fraction of each class among the pixels that are not ignored; sums to 1, or zeros without pixels."""
        return np.asarray(self.pixel_counts / max(1, self.pixel_counts.sum()), dtype=np.float64)


def summarize_masks(data: Any, name: str, progress: bool = True) -> MaskSummary:
    """Reads all masks of a data set in threads.

    Args:
        data: `SegmentationFiles`, or images in memory with `read_mask` and `class_names`.
        name: of the data set, for the progress bar, which appears after two seconds.
        progress: whether to show it.
    """
    num_classes = len(data.class_names)
    summary = MaskSummary(np.zeros(num_classes, dtype=np.int64), 0, set(), [], [])
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        results: Iterable[_MaskResult] = pool.map(lambda index: _read(data, index, num_classes), range(len(data)))
        options = {"desc": f"Checking the {name} masks", "unit": " masks", "delay": 2, "leave": False}
        for index, result in enumerate(tqdm(results, total=len(data), disable=not progress, **options)):
            if result.error:
                summary.errors.append(result.error)
                continue
            summary.sizes.add(result.size)
            summary.pixel_counts += result.counts
            summary.num_ignored += result.num_ignored
            if not result.counts.any():
                summary.void_masks.append(data.mask_path(index) if hasattr(data, "mask_path") else str(index))
    return summary


@dataclass
class _MaskResult:
    """Size, pixels per class (C,) and ignored pixels of a mask, or the reason why it cannot be used."""

    size: tuple[int, int]
    counts: NDArray[np.int64]
    num_ignored: int
    error: str = ""


def _read(data: Any, index: int, num_classes: int) -> _MaskResult:
    try:
        mask = data.read_mask(index)
        size = image_size(data.image_path(index)) if isinstance(data, SegmentationFiles) else mask.shape
    except ValueError as error:
        return _MaskResult((0, 0), np.zeros(num_classes, dtype=np.int64), 0, str(error))
    counts = np.bincount(mask.ravel(), minlength=256)
    wrong = "" if size == mask.shape else size_message(data.image_path(index), size, data.mask_path(index), mask.shape)
    return _MaskResult(size, counts[:num_classes].astype(np.int64), int(counts[IGNORED_PIXEL]), wrong)


def image_size(path: str) -> tuple[int, int]:
    """Height and width of the upright image; decodes only files that look incomplete.

    Raises:
        ValueError: if the file cannot be read, or has 32 bits per channel.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            check_depth(file.mode, file.format)
            # A PNG file without the chunk would be decoded to look for it.
            has_exif = file.format != "PNG" or "exif" in file.info
            turned = has_exif and file.getexif().get(ORIENTATION_TAG) in TURNED_ORIENTATIONS
            if not ends_like(path, IMAGE_ENDS.get(file.format or "", b"")):
                file.load()
    except Exception as error:  # decoders may raise any exception
        raise ValueError(f"cannot read the image {shorten(path)}: {shorten(error)}") from error
    return (width, height) if turned else (height, width)


def ends_like(path: str, end: bytes) -> bool:
    """Whether a file ends with these bytes; False if none are given."""
    with open(path, "rb") as file:
        file.seek(max(-len(end), -os.path.getsize(path)), os.SEEK_END)
        return bool(end) and file.read() == end


def describe_frequencies(class_names: Sequence[str], frequencies: NDArray[np.float64], shown: int = 20) -> str:
    """The classes with their share of pixels, the most frequent first.

    >>> describe_frequencies(["road", "pole"], np.array([0.9, 0.1]))
    'road 90.0 %, pole 10.0 %'
    """
    order = np.argsort(-frequencies, kind="stable")
    parts = [f"{class_names[index]} {percent(frequencies[index])}" for index in order]
    if len(parts) > shown:
        left_out = pluralize(len(parts) - shown, "class", "classes")
        parts = [*parts[: shown // 2], f"({left_out} more)", *parts[-(shown - shown // 2) :]]
    return ", ".join(parts)


def percent(fraction: float) -> str:
    """Formats a fraction: "29.5 %", "0.53 %", "below 0.01 %", "0 %"."""
    if 0 < fraction < 1e-4:
        return "below 0.01 %"
    return f"{100 * fraction:.{1 if fraction >= 0.01 else 2 if fraction else 0}f} %"


def error_message(name: str, errors: Sequence[str], count: int) -> str:
    """One message for all files of a data set that cannot be used.

    Args:
        name: of the data set, such as "training".
        errors: a sentence for each of them.
        count: number of images in the data set.
    """
    first = errors[0].rstrip(".")
    if len(errors) == 1:
        return f"{name}: {first}."
    return f"{name}: {len(errors):,} of {pluralize(count, 'image')} cannot be used. The first: {first}."
