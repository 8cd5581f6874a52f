"""Checks whether a collate function keeps the order of its items, by collating them in other orders."""

from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate, default_convert

ORDER_PRESERVING_COLLATES = (default_collate, default_convert)


class CheckedCollate:
    """Wraps a collate function and records if it reorders items; works in worker processes too.

    Collates the items two more times: rotated by one position, and reversed. A function that keeps the order returns
    the same batch, rotated or reversed. A function that sorts, shuffles, drops items or uses random numbers fails this
    check. If batches cannot be compared, `keeps_order` is set to False.

    Attributes:
        keeps_order: (1,) bool in shared memory; False once a batch is reordered or cannot be compared.
    """

    def __init__(self, collate: Any) -> None:
        self.collate = collate
        self.keeps_order = torch.ones(1, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]  # torch's

    def __call__(self, items: Any) -> Any:
        """Collates the items, and checks their order."""
        originals = copies(items)  # collate may modify the items in place
        batch = self.collate(items)
        if len(items) > 1 and self.keeps_order:
            self.keeps_order[0] = keeps_order(self.collate, originals, batch)
        return batch


def copies(items: list[Any]) -> list[Any]:
    """Shallow copies of the items; an empty list if copying fails."""
    try:
        return [copy(item) for item in items]
    except Exception:  # user types may raise anything
        return []


def keeps_order(collate: Any, items: list[Any], batch: Any) -> bool:
    """Whether collating permuted items gives the permuted batch (b, ...), for two permutations."""
    positions = np.arange(len(items))
    if not items:
        return False
    try:
        return all(
            is_permuted(batch, collate([copy(items[position]) for position in order]), order)
            for order in (np.roll(positions, 1), positions[::-1])
        )
    except Exception:  # user functions and types may raise anything
        return False


def is_permuted(batch: Any, permuted: Any, order: Any) -> bool:
    """Whether `permuted` is `batch` in this order; parts that do not have one entry per item must be equal.

    Args:
        batch: tensors or arrays (b, ...), lists of b entries, and nested structures of them.
        permuted: the same, for items in another order.
        order: (b,) for each item of `permuted`, its position in `batch`.
    """
    if type(batch) is not type(permuted):
        return False
    if isinstance(batch, Mapping):
        return list(batch) == list(permuted) and all(is_permuted(batch[key], permuted[key], order) for key in batch)
    if isinstance(batch, Tensor | np.ndarray):
        values, others = torch.as_tensor(batch), torch.as_tensor(permuted)
        if values.shape != others.shape or values.dtype != others.dtype:
            return False
        if values.ndim and len(values) == len(order):
            return all(  # compares item by item, without copying the batch
                is_equal(values[int(position)], permuted_value)
                for position, permuted_value in zip(order, others, strict=True)
            )
        return is_equal(values, others)
    if isinstance(batch, list | tuple):
        if len(batch) != len(permuted):
            return False
        if len(batch) == len(order) > 0 and all(
            is_permuted(batch[position], permuted_value, order[:0])
            for position, permuted_value in zip(order, permuted, strict=True)
        ):
            return True
        return all(is_permuted(part, other, order) for part, other in zip(batch, permuted, strict=True))
    return isinstance(batch, str | bytes | int | float | None) and (batch == permuted)


def is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same values; NaN is the same as NaN."""
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
