"""Removes already saved items from a dataloader."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from lightning_recall._lightning import unwrapped_batch_sampler
from lightning_recall.callbacks.embedding_check import evenly_spaced
from lightning_recall.callbacks.index_recorder import HINT, IndexRecorder, as_indices, changed_copy, sampler_name
from lightning_recall.random_state import preserve_random_state


class RemainingBatches:
    """A sampler or batch sampler that yields the batches in a list."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Remainder(NamedTuple):
    """A dataloader without the saved items.

    loader: yields the items to recheck, then those that are not saved, both in the order of the original sampler.
    recheck_indices: (m,) sorted indices of the saved items whose embeddings are recomputed and compared.
    num_left: number of items that are not saved.
    """

    loader: Any
    recheck_indices: Tensor
    num_left: int


def without_saved(loader: Any, saved: Tensor) -> Remainder:
    """Removes the saved items from a dataloader, except for up to 16 evenly spaced ones, which come first.

    With a distributed sampler, only items of this process are yielded or rechecked. The batches of a plain
    `torch.utils.data.BatchSampler` are refilled; other batch samplers keep their grouping, without the saved items.

    Args:
        loader: the dataloader as Lightning has prepared it; its order must be known (`has_known_order`).
        saved: (s,) sorted indices of the saved items.

    Raises:
        ValueError: if the sampler does not yield indices.
    """
    name = sampler_name(loader)
    sampler = getattr(loader, name)
    entries = draw(sampler)
    batches = [indices_of(entry) for entry in entries]
    drawn = torch.cat([torch.empty(0, dtype=torch.int64), *batches])
    recheck_indices = evenly_spaced(saved[torch.isin(saved, drawn)])
    is_recheck, is_unsaved = torch.isin(drawn, recheck_indices), ~torch.isin(drawn, saved)
    unwrapped = unwrapped_batch_sampler(sampler)
    remaining: list[Any]
    if type(unwrapped) is BatchSampler:
        indices = torch.cat([drawn[is_recheck], drawn[is_unsaved]])
        remaining = [batch.tolist() for batch in torch.split(indices, unwrapped.batch_size) if len(batch)]
    else:
        sizes = [len(batch) for batch in batches]
        selected_batches = [
            (entry, batch[batch_mask])
            for mask in (is_recheck, is_unsaved)
            for entry, batch, batch_mask in zip(
                entries, batches, torch.split(mask, sizes) if sizes else (), strict=True
            )
        ]
        remaining = [convert_like(entry, indices) for entry, indices in selected_batches if len(indices)]
    new_sampler: Any = RemainingBatches(remaining)
    if hasattr(sampler, "seen_batch_indices"):  # the sampler is an IndexRecorder or Lightning's wrapper
        new_sampler = IndexRecorder(new_sampler)
    return Remainder(changed_copy(loader, **{name: new_sampler}), recheck_indices, int(is_unsaved.sum()))


def draw(sampler: Any) -> list[Any]:
    """Draws one pass of a sampler, with the same seed on all processes.

    Each process of a distributed sampler takes its part of one permutation. If processes drew different permutations,
    some items would be assigned to no process.
    """
    with preserve_random_state():
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  # user samplers may use the global generator
        torch.default_generator.manual_seed(0)
        return list(sampler)


def indices_of(entry: Any) -> Tensor:
    """The indices (b,) in what a sampler yields."""
    indices = as_indices(entry)
    if indices is None:
        raise ValueError(f"The sampler of a dataloader must yield indices of the data set, got {entry!r}: {HINT}.")
    return indices


def convert_like(entry: Any, indices: Tensor) -> Any:
    """Converts indices (b,) to the type that the sampler yielded: a list, a tensor or array, or a single integer."""
    if isinstance(entry, Tensor | np.ndarray) and entry.ndim:
        return indices if isinstance(entry, Tensor) else indices.numpy()
    return indices.tolist() if isinstance(entry, Sequence) else indices.item()
