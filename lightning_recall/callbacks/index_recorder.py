"""Records from the sampler which indices of its data set each batch holds."""

from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_recall._lightning import Trainer, add_dataloader_hook, remove_dataloader_hook
from lightning_recall.callbacks.collate_order import IN_ORDER, CheckedCollate
from lightning_recall.data.attributes import labels_of

HINT = (
    "use a map-style data set and a torch DataLoader with in_order=True whose collate_fn keeps all items, keeps their "
    "order and is deterministic"
)


class IndexRecorder:
    """Wraps a sampler or batch sampler and records what it yields, batch by batch.

    Attributes:
        seen_batch_indices: what the current pass has yielded; named as in Lightning's own wrapper for `predict`.
    """

    def __init__(self, recorded: Any) -> None:
        self.recorded = recorded
        self.seen_batch_indices: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        """Yields from the sampler; each pass resets the record."""
        self.seen_batch_indices = seen = []
        for indices in self.recorded:
            seen.append(indices)
            yield indices

    def __len__(self) -> int:
        return len(self.recorded)

    def __getattr__(self, name: str) -> Any:
        """Forwards other attributes to the wrapped sampler: `batch_size`, `set_epoch`, ..."""
        if name == "recorded":  # not set yet during copy
            raise AttributeError(name)
        return getattr(self.recorded, name)


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
    if loader.collate_fn not in IN_ORDER:
        changes["collate_fn"] = CheckedCollate(loader.collate_fn)
    return changed_copy(loader, **changes)


def changed_copy(loader: Any, **attributes: Any) -> Any:
    """A copy of a dataloader with other attributes, also those that `DataLoader.__setattr__` does not let us change."""
    loader = copy(loader)
    vars(loader).update(attributes)
    return loader


def has_known_order(loader: Any) -> bool:
    """Whether batches come in the order in which the sampler yields them."""
    return (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, IterableDataset)
        and (loader.batch_sampler is not None or loader.collate_fn in IN_ORDER)  # otherwise it may get whole batches
        and (loader.num_workers == 0 or getattr(loader, "in_order", True))  # from torch 2.6; older ones keep the order
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

    They are unknown for iterable data sets, and for dataloaders that return batches out of order or override
    `__iter__`. They are unknown if the size of the batch is not the number of indices drawn: `collate_fn` drops items,
    or the items of the data set are batches themselves. And they are unknown if the items of the batch are in another
    order than the indices: `collate_fn` reorders them (`CheckedCollate` finds out), or a hook does, which shows if the
    labels (b,) are a permutation of those of the indices.
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


def as_indices(drawn: Any) -> Tensor | None:
    """What a sampler yields for a batch, as indices (b,) int64; None for keys that are not integers."""
    try:
        indices = torch.as_tensor(drawn)
    except (TypeError, ValueError, RuntimeError):
        return None
    is_integer = not (indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool)
    return indices.reshape(-1).long() if indices.ndim <= 1 and (is_integer or indices.numel() == 0) else None


def is_reordered(dataset_labels: Tensor | None, indices: Tensor, labels: Tensor | None) -> bool:
    """Whether labels (b,) are a permutation, and not equal, to those of the indices (b,).

    Other labels, because the data set maps them or an image is unreadable, do not show that items are reordered.
    """
    if dataset_labels is None or labels is None or labels.shape != indices.shape:
        return False
    expected, given = dataset_labels[indices], labels.detach().cpu()
    return not torch.equal(expected, given) and torch.equal(expected.sort().values, given.sort().values)
