"""Which rows of its data set each batch of a dataloader holds, as its sampler draws them."""

from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_recall._lightning import Trainer
from lightning_recall.callbacks.collate_order import IN_ORDER, CheckedCollate
from lightning_recall.data.attributes import labels_of

REMEDY = (
    "evaluate a map-style data set with a torch DataLoader that gives its batches in order and whose collate_fn leaves "
    "no item out, keeps the order of the items and draws no random numbers"
)


class IndexRecorder:
    """A sampler or batch sampler that keeps what it yields, batch by batch.

    Attributes:
        seen_batch_indices: what the current pass has yielded; Lightning's own wrapper for `predict` calls it so, too.
    """

    def __init__(self, recorded: Any) -> None:
        self.recorded = recorded
        self.seen_batch_indices: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        """What the sampler yields; a new pass forgets the last one."""
        self.seen_batch_indices = seen = []
        for rows in self.recorded:
            seen.append(rows)
            yield rows

    def __len__(self) -> int:
        return len(self.recorded)

    def __getattr__(self, name: str) -> Any:
        """What else is asked of the sampler: `batch_size`, `set_epoch`, ..."""
        if name == "recorded":  # not there yet while it is copied
            raise AttributeError(name)
        return getattr(self.recorded, name)


def record_indices(trainer: Trainer) -> None:
    """Has every dataloader that the Trainer evaluates or predicts with record its rows, until `stop_recording`.

    Lightning lets the strategy process each dataloader after it has set up its samplers and before it iterates.
    """
    strategy: Any = trainer.strategy
    stop_recording(trainer)
    strategy.process_dataloader = partial(process, trainer, strategy.process_dataloader)


def stop_recording(trainer: Trainer) -> None:
    """Undoes `record_indices`."""
    hook = vars(trainer.strategy).get("process_dataloader")
    if isinstance(hook, partial) and hook.func is process:
        del trainer.strategy.process_dataloader


def process(trainer: Trainer, of_strategy: Callable[[Any], Any], loader: Any) -> Any:
    """A dataloader as the strategy wants it, which records its rows unless it is one for training."""
    return of_strategy(loader if trainer.training else recording(loader))


def recording(loader: Any) -> Any:
    """A copy of a dataloader that records its rows; the same dataloader where they cannot be known."""
    if not has_known_order(loader) or "own_labels" in vars(loader):
        return loader
    own = loader
    loader = copy(loader)
    parts = vars(loader)  # DataLoader refuses to set some of them in the plain way
    parts["own_labels"] = labels_of(loader.dataset)
    if recorder_of(own) is None:  # Lightning has put one of its own there for predict
        parts[sampler_name(loader)] = IndexRecorder(getattr(loader, sampler_name(loader)))
    if loader.collate_fn not in IN_ORDER:
        parts["collate_fn"] = CheckedCollate(loader.collate_fn)
    return loader


def has_known_order(loader: Any) -> bool:
    """Whether batches come in the order in which the sampler draws them."""
    return (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, IterableDataset)
        and (loader.batch_sampler is not None or loader.collate_fn in IN_ORDER)  # else it gets whole batches
        and (loader.num_workers == 0 or getattr(loader, "in_order", True))  # torch 2.6 has it, older ones keep order
    )


def sampler_name(loader: Any) -> str:
    """The attribute that torch draws from: with `batch_size=None`, `sampler` yields what the data set is asked for."""
    return "sampler" if loader.batch_sampler is None else "batch_sampler"


def recorder_of(loader: Any) -> Any:
    """The sampler of a dataloader that records its rows; None if there is none."""
    if not has_known_order(loader):
        return None
    sampler = getattr(loader, sampler_name(loader))
    return sampler if hasattr(sampler, "seen_batch_indices") else None


def indices_of_batch(loader: Any, batch_idx: int, size: int, labels: Tensor | None = None) -> Tensor | None:
    """Rows (b,) of the data set that a batch of `size` items holds; None where they are not known.

    They are not known of streams, of dataloaders that give batches out of order or iterate in a way of their own, of
    batches whose size is not the number of rows that were drawn, because `collate_fn` drops some or the items of the
    data set are batches themselves, and of batches in another order than the rows: `collate_fn` may sort (it is tried
    out by `CheckedCollate`), or a hook, which shows in labels (b,) that are those of the rows in another order.
    """
    recorder = recorder_of(loader)
    if recorder is None or batch_idx >= len(recorder.seen_batch_indices):
        return None
    if isinstance(loader.collate_fn, CheckedCollate) and not loader.collate_fn.keeps_order:
        return None
    try:
        rows = torch.as_tensor(recorder.seen_batch_indices[batch_idx])
    except (TypeError, ValueError, RuntimeError):  # keys of another kind than integers
        return None
    is_integer = not (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)
    if not is_integer or rows.ndim > 1 or rows.numel() != size:
        return None
    rows = rows.reshape(-1).long()
    return None if is_reordered(getattr(loader, "own_labels", None), rows, labels) else rows


def is_reordered(own_labels: Tensor | None, rows: Tensor, labels: Tensor | None) -> bool:
    """Whether labels (b,) are those of rows (b,) in another order.

    Labels that are others, because the data set maps them or an image could not be read, prove nothing.
    """
    if own_labels is None or labels is None or labels.shape != rows.shape:
        return False
    drawn, given = own_labels[rows], labels.detach().cpu()
    return not torch.equal(drawn, given) and torch.equal(drawn.sort().values, given.sort().values)
