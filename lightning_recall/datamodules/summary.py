"""What is said of the data sets once they are read."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_recall._lightning import rank_zero_info, rank_zero_warn
from lightning_recall.data.messages import counted, short


def named(test_data: Any) -> list[tuple[str, Any]]:
    """Names and data sets of a test: "test" if there is but one."""
    if isinstance(test_data, Mapping):
        return [(f"test {name}", data) for name, data in test_data.items()]
    return [("test", test_data)]


def report(name: str, data: Any) -> None:
    """Says how many images, and classes or queries, there are."""
    if hasattr(data, "ground_truth"):
        queries = len(data.ground_truth)
        rank_zero_info(f"{name}: {counted(queries, 'query', 'queries')} and {counted(len(data) - queries, 'image')}")
        return
    _, counts = np.unique(data.labels, return_counts=True)
    each = f"{counts.min():,}" + (f" to {counts.max():,}" if counts.min() < counts.max() else "")
    rank_zero_info(
        f"{name}: {counted(len(data), 'image')} of {counted(len(counts), 'class', 'classes')}, {each} of each"
    )


def check_queries(name: str, data: Any, required: bool) -> None:
    """Warns of queries that have no other image of their class to find: they are not counted.

    Raises:
        ValueError: if that is so for all, and one is required.
    """
    everything = np.ones(len(data), dtype=np.bool_)
    is_query, is_gallery = (
        everything if marks is None else np.asarray(marks)
        for marks in (getattr(data, "is_query", None), getattr(data, "is_gallery", None))
    )
    classes, class_of = np.unique(data.labels, return_inverse=True)
    in_gallery = (
        np.bincount(class_of, is_gallery, len(classes))[class_of] - is_gallery
    )  # (N,), besides the image itself
    lost = np.flatnonzero(is_query & (in_gallery == 0))
    total = int(is_query.sum())
    if len(lost) == total and required:
        raise ValueError(
            f"{name}: none of {counted(total, 'query', 'queries')} has another image of its class to find, so nothing "
            "can be scored. Give more classes, of two images or more."
        )
    if len(lost):
        example = f", such as {short(data.path(lost[0]))}" if hasattr(data, "path") else ""
        have, their, they = ("has", "its", "it is") if len(lost) == 1 else ("have", "their", "they are")
        rank_zero_warn(
            f"{name}: {len(lost):,} of {counted(total, 'query', 'queries')} {have} no other image of {their} class to "
            f"find{example}: {they} not counted."
        )
