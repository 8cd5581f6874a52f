"""Logs data set sizes and warns about queries without relevant items."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_recall._lightning import rank_zero_info, rank_zero_warn
from lightning_recall.data.messages import pluralize, shorten


def named_test_sets(test_data: Any) -> list[tuple[str, Any]]:
    """Pairs (name, data set) of the test sets: "test NAME" for each of several, "test" if there is only one."""
    if isinstance(test_data, Mapping):
        return [(f"test {name}", data) for name, data in test_data.items()]
    return [("test", test_data)]


def log_sizes(name: str, data: Any) -> None:
    """Logs the numbers of images, and of classes or queries."""
    if hasattr(data, "ground_truth"):
        queries = len(data.ground_truth)
        images = pluralize(len(data) - queries, "image")
        rank_zero_info(f"{name}: {pluralize(queries, 'query', 'queries')} and {images}")
        return
    _, counts = np.unique(data.labels, return_counts=True)
    each = f"{counts.min():,}" + (f" to {counts.max():,}" if counts.min() < counts.max() else "")
    rank_zero_info(
        f"{name}: {pluralize(len(data), 'image')} of {pluralize(len(counts), 'class', 'classes')}, {each} per class"
    )


def log_repeats(labels: Any, batch_size: int, samples_per_class: int) -> None:
    """Logs that a batch repeats classes or images, if it is larger than the training data.

    Args:
        labels: (N,) classes of the training images.
        batch_size: images in a batch.
        samples_per_class: images of a class in a batch.
    """
    num_images, num_classes = len(labels), len(np.unique(labels))
    needed = batch_size // samples_per_class
    if batch_size > num_images:
        rank_zero_info(
            f"batch_size={batch_size} is larger than the {pluralize(num_images, 'training image')}: images repeat "
            f"within a batch; choose at most {num_images}."
        )
    elif needed > num_classes:
        rank_zero_info(
            f"batch_size={batch_size} needs {needed} classes of {pluralize(samples_per_class, 'image')}, but there are "
            f"{num_classes}: a batch holds several packs of a class; for one of each, choose batch_size="
            f"{num_classes * samples_per_class}."
        )


def check_queries(name: str, data: Any, required: bool) -> None:
    """Warns about queries without a relevant item, which are not scored.

    Raises:
        ValueError: if no query has a relevant item and `required` is set.
    """
    all_items = np.ones(len(data), dtype=np.bool_)
    is_query, is_gallery = (
        all_items if mask is None else np.asarray(mask)
        for mask in (getattr(data, "is_query", None), getattr(data, "is_gallery", None))
    )
    classes, class_indices = np.unique(data.labels, return_inverse=True)
    gallery_counts = np.bincount(class_indices, is_gallery, len(classes))
    relevant = gallery_counts[class_indices] - is_gallery  # (N,), without the image itself
    without_match = np.flatnonzero(is_query & (relevant == 0))
    total = int(is_query.sum())
    if name == "validation" and len(classes) == 1:
        rank_zero_warn(
            "validation: all images are of one class, so every score is 1: set aside more classes (val_classes)."
        )
    if len(without_match) == total and required:
        raise ValueError(
            f"{name}: none of {pluralize(total, 'query', 'queries')} has a relevant gallery image, so nothing can be "
            "scored. At least one class needs two images."
        )
    if len(without_match):
        example = f", such as {shorten(data.path(without_match[0]))}" if hasattr(data, "path") else ""
        have, are = ("has", "is") if len(without_match) == 1 else ("have", "are")
        rank_zero_warn(
            f"{name}: {len(without_match):,} of {pluralize(total, 'query', 'queries')} {have} no relevant gallery "
            f"image and {are} not scored{example}."
        )
