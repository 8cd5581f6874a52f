"""Whether a collate function keeps its items in order, found by collating them in two orders."""

from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate, default_convert

IN_ORDER = (default_collate, default_convert)


class CheckedCollate:
    """A collate function that notes when it does not keep the order of its items, also in a worker process.

    The items are collated twice more, rotated by one place and in reverse. A function that keeps the order gives the
    same batch, rotated or reversed. One that sorts does not, nor one that shuffles, drops items or draws random
    numbers. Where batches cannot be compared, the order is not known.

    Attributes:
        keeps_order: (1,) bool in shared memory; False once a batch was not in order, or could not be compared.
    """

    def __init__(self, collate: Any) -> None:
        self.collate = collate
        self.keeps_order = torch.ones(1, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]  # torch's

    def __call__(self, items: Any) -> Any:
        """The batch of the collate function."""
        originals = copies(items)  # it may take items apart
        batch = self.collate(items)
        if len(items) > 1 and self.keeps_order:
            self.keeps_order[0] = keeps_order(self.collate, originals, batch)
        return batch


def copies(items: list[Any]) -> list[Any]:
    """Copies of containers, not of the tensors in them; none of what cannot be copied."""
    try:
        return [copy(item) for item in items]
    except Exception:  # whatever types of anybody's raise
        return []


def keeps_order(collate: Any, items: list[Any], batch: Any) -> bool:
    """Whether the batch of items in two other orders is the batch (b, ...) in these orders."""
    places = np.arange(len(items))
    if not items:
        return False
    try:
        return all(
            is_permuted(batch, collate([copy(items[place]) for place in order]), order)
            for order in (np.roll(places, 1), places[::-1])
        )
    except Exception:  # whatever anybody's function or types raise at a second call: the order is not known
        return False


def is_permuted(one: Any, other: Any, order: Any) -> bool:
    """Whether all parts of a batch with an entry for each item are those of another in this order, and the rest equal.

    Args:
        one: tensors or arrays (b, ...), lists of b entries, and nests of them.
        other: the same, for items in another order.
        order: (b,) for each item of `other`, its place in `one`.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(is_permuted(one[key], other[key], order) for key in one)
    if isinstance(one, Tensor | np.ndarray):
        values, others = torch.as_tensor(one), torch.as_tensor(other)
        if values.shape != others.shape or values.dtype != others.dtype:
            return False
        if values.ndim and len(values) == len(order):
            return all(is_equal(values[int(old)], new) for old, new in zip(order, others, strict=True))  # no copies
        return is_equal(values, others)
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return False
        if len(one) == len(order) > 0 and all(
            is_permuted(one[old], new, order[:0]) for old, new in zip(order, other, strict=True)
        ):
            return True
        return all(is_permuted(part, another, order) for part, another in zip(one, other, strict=True))
    return isinstance(one, str | bytes | int | float | None) and (one == other)


def is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same values; NaN is the same as NaN."""
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
