"""Leaves out of a dataloader what is saved already."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from lightning_recall._lightning import unwrapped_batch_sampler
from lightning_recall.callbacks.embedding_check import evenly_spaced
from lightning_recall.callbacks.index_recorder import REMEDY, IndexRecorder, as_indices, changed_copy, sampler_name
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

    loader: yields the items to compare, then those that are not saved, both in the order of the original sampler.
    compared: (m,) sorted indices of the items to compare.
    num_left: number of items that are not saved.
    """

    loader: Any
    compared: Tensor
    num_left: int


def without_saved(loader: Any, saved: Tensor) -> Remainder:
    """Leaves the saved items out of a dataloader, apart from up to 16, evenly spaced, that it yields first.

    With a distributed sampler, both are those of this process. The batches of a `torch.utils.data.BatchSampler` are
    full; those of any other batch sampler, which may group items for a reason, only lose their saved items.

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
    compared = evenly_spaced(saved[torch.isin(saved, drawn)])
    masks = torch.isin(drawn, compared), ~torch.isin(drawn, saved)
    unwrapped = unwrapped_batch_sampler(sampler)
    remaining: list[Any]
    if type(unwrapped) is BatchSampler:
        indices = torch.cat([drawn[mask] for mask in masks])
        remaining = [batch.tolist() for batch in torch.split(indices, unwrapped.batch_size) if len(batch)]
    else:
        sizes = [len(batch) for batch in batches]
        parts = (torch.split(mask, sizes) if sizes else () for mask in masks)
        triples = [triple for part in parts for triple in zip(entries, batches, part, strict=True)]
        remaining = [in_form_of(entry, batch[mask]) for entry, batch, mask in triples if mask.any()]
    new_sampler: Any = RemainingBatches(remaining)
    if hasattr(sampler, "seen_batch_indices"):  # it records, as an IndexRecorder or Lightning's wrapper does
        new_sampler = IndexRecorder(new_sampler)
    return Remainder(changed_copy(loader, **{name: new_sampler}), compared, int(masks[1].sum()))


def draw(sampler: Any) -> list[Any]:
    """All that a sampler yields in one pass, from the same random numbers on all processes.

    Each process of a distributed sampler takes its part of one permutation. If processes drew different permutations,
    some items would be in no part.
    """
    with preserve_random_state():
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  # the generator that samplers of users may draw from
        torch.default_generator.manual_seed(0)
        return list(sampler)


def indices_of(entry: Any) -> Tensor:
    """The indices (b,) in what a sampler yields."""
    indices = as_indices(entry)
    if indices is None:
        raise ValueError(f"The sampler of a dataloader must yield indices of the data set, got {entry!r}: {REMEDY}.")
    return indices


def in_form_of(entry: Any, indices: Tensor) -> Any:
    """Indices (b,) in the form in which a sampler yields them: a list, a tensor or array, or a single integer."""
    if isinstance(entry, Tensor | np.ndarray) and entry.ndim:
        return indices if isinstance(entry, Tensor) else indices.numpy()
    return indices.tolist() if isinstance(entry, Sequence) else indices.item()
