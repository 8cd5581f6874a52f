"""Records the data set indices of each batch by wrapping the sampler."""

from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_recall._lightning import Trainer, add_dataloader_hook, remove_dataloader_hook
from lightning_recall.callbacks.collate_order import ORDER_PRESERVING_COLLATES, CheckedCollate
from lightning_recall.data.attributes import labels_of
from lightning_recall.tensors import holds_integers

HINT = (
    "use a map-style data set and a torch DataLoader with in_order=True whose collate_fn keeps all items, keeps their "
    "order and is deterministic"
)


class IndexRecorder:
    """Wraps a sampler or batch sampler and records what it yields, batch by batch.

    Attributes:
        seen_batch_indices: what the current pass has yielded; named as in Lightning's own wrapper for `predict`.
    """

    def __init__(self, wrapped_sampler: Any) -> None:
        self.wrapped_sampler = wrapped_sampler
        self.seen_batch_indices: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        """Yields from the sampler; each pass resets the record."""
        self.seen_batch_indices = seen = []
        for indices in self.wrapped_sampler:
            seen.append(indices)
            yield indices

    def __len__(self) -> int:
        return len(self.wrapped_sampler)

    def __getattr__(self, name: str) -> Any:
        """Forwards other attributes to the wrapped sampler: `batch_size`, `set_epoch`, ..."""
        if name == "wrapped_sampler":  # not set yet during copy
            raise AttributeError(name)
        return getattr(self.wrapped_sampler, name)


def record_indices(trainer: Trainer) -> None:
    """Makes all dataloaders for evaluation and prediction record their indices, until `stop_recording`."""
    add_dataloader_hook(trainer, record_unless_training)


def stop_recording(trainer: Trainer) -> None:
    """Undoes `record_indices`."""
    remove_dataloader_hook(trainer, record_unless_training)


def record_unless_training(trainer: Trainer, loader: Any) -> Any:
    """A copy of the dataloader that records its indices; in training, the dataloader itself."""
    return loader if trainer.training else recording_copy(loader)


def recording_copy(loader: Any) -> Any:
    """A copy of a dataloader that records its indices; the dataloader itself if they cannot be recorded."""
    if not has_known_order(loader) or "dataset_labels" in vars(loader):
        return loader
    name = sampler_name(loader)
    changes: dict[str, Any] = {"dataset_labels": labels_of(loader.dataset)}
    if recorder_of(loader) is None:
        changes[name] = IndexRecorder(getattr(loader, name))
    if loader.collate_fn not in ORDER_PRESERVING_COLLATES:
        changes["collate_fn"] = CheckedCollate(loader.collate_fn)
    return changed_copy(loader, **changes)


def changed_copy(loader: Any, **attributes: Any) -> Any:
    """A copy of a dataloader with changed attributes, including those that `DataLoader.__setattr__` protects."""
    loader = copy(loader)
    vars(loader).update(attributes)
    return loader


def has_known_order(loader: Any) -> bool:
    """Whether batches come in the order in which the sampler yields them."""
    return (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, IterableDataset)
        # with batch_size=None, a custom collate_fn may receive whole batches
        and (loader.batch_sampler is not None or loader.collate_fn in ORDER_PRESERVING_COLLATES)
        # in_order exists since torch 2.6; older versions always keep the order
        and (loader.num_workers == 0 or getattr(loader, "in_order", True))
    )


def sampler_name(loader: Any) -> str:
    """Name of the sampler that yields indices of the data set: `sampler` if batch_size=None, else `batch_sampler`."""
    return "sampler" if loader.batch_sampler is None else "batch_sampler"


def recorder_of(loader: Any) -> Any:
    """The sampler of a dataloader that records its indices; None if there is none."""
    if not has_known_order(loader):
        return None
    sampler = getattr(loader, sampler_name(loader))
    return sampler if hasattr(sampler, "seen_batch_indices") else None


def indices_of_batch(loader: Any, batch_idx: int, size: int, labels: Tensor | None = None) -> Tensor | None:
    """Indices (b,) in the data set of a batch of `size` items; None if they are unknown.

    They are unknown in these cases:

    - The data set is iterable, or the dataloader returns batches out of order or overrides `__iter__`.
    - The batch does not have as many items as the sampler yielded indices: `collate_fn` drops items, or the items of
      the data set are batches themselves.
    - `collate_fn` or a hook reorders the items. `CheckedCollate` detects a reordering `collate_fn`; a reordering hook
      is detected by comparing the labels (b,) with those of the data set.
    """
    recorder = recorder_of(loader)
    if recorder is None or batch_idx >= len(recorder.seen_batch_indices):
        return None
    if isinstance(loader.collate_fn, CheckedCollate) and not loader.collate_fn.keeps_order:
        return None
    indices = as_indices(recorder.seen_batch_indices[batch_idx])
    if indices is None or len(indices) != size:
        return None
    return None if is_reordered(getattr(loader, "dataset_labels", None), indices, labels) else indices


def required_indices(loader: Any, batch_idx: int, size: int, reason: str) -> Tensor:
    """Indices (b,) in the data set of a batch: see `indices_of_batch`.

    Args:
        loader: the dataloader.
        batch_idx: number of the batch.
        size: b.
        reason: why they are needed, the start of the error message.

    Raises:
        ValueError: if they are unknown.
    """
    indices = indices_of_batch(loader, batch_idx, size)
    if indices is None:
        raise ValueError(f"{reason}, but the data set indices of batch {batch_idx} are unknown: {HINT}.")
    return indices


def as_indices(entry: Any) -> Tensor | None:
    """Converts what a sampler yields to indices (b,) int64; None if it does not yield integers."""
    try:
        indices = torch.as_tensor(entry)
    except (TypeError, ValueError, RuntimeError):
        return None
    is_list = indices.ndim <= 1 and (holds_integers(indices) or indices.numel() == 0)
    return indices.reshape(-1).long() if is_list else None


def is_reordered(dataset_labels: Tensor | None, indices: Tensor, labels: Tensor | None) -> bool:
    """Whether labels (b,) are the data set's labels at the indices (b,), but in another order.

    Labels can also differ because the data set maps them or an image is unreadable; this does not count as reordering.
    """
    if dataset_labels is None or labels is None or labels.shape != indices.shape:
        return False
    expected, given = dataset_labels[indices], labels.detach().cpu()
    return not torch.equal(expected, given) and torch.equal(expected.sort().values, given.sort().values)
