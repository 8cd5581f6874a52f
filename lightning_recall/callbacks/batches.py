"""What callbacks read from a batch and from a dataloader of anybody's module."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DistributedSampler, IterableDataset, SequentialSampler

UNREADABLE = -100  # label of an image that could not be read and is not scored: torch's ignore_index


def images_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """Images (b, ...) and labels (b,) of a batch of evaluation.

    Raises:
        ValueError: if it is no such pair.
    """
    if isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    what = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, Sequence) else type(batch).__name__
    raise ValueError(f"A batch of evaluation must be a pair of tensors (images, labels), got a {what}.")


def embeddings_of_batch(trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any) -> Tensor:
    """Embeddings (b, D) of a batch: those under "embeddings" in what the step returned, else those of forward.

    Raises:
        ValueError: if the batch is no pair (images, labels), or forward gives something else.
    """
    images, labels = images_and_labels(batch)
    if isinstance(outputs, Mapping) and "embeddings" in outputs:
        embeddings = outputs["embeddings"]
    else:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            embeddings = pl_module(images)
    if not (isinstance(embeddings, Tensor) and embeddings.ndim == 2 and len(embeddings) == len(labels)):
        raise ValueError(f"forward of {type(pl_module).__name__} must give embeddings ({len(labels)}, D).")
    return embeddings


def rows_in_order(loader: Any) -> list[int] | None:
    """Rows of the data set in the order in which this process evaluates them; None where that cannot be told."""
    sampler = getattr(loader, "sampler", None)
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None
    if isinstance(sampler, SequentialSampler) or (isinstance(sampler, DistributedSampler) and not sampler.shuffle):
        return list(sampler)
    return None


def roles(loader: Any, rows: Tensor | None) -> dict[str, Tensor]:
    """What a data set tells of some rows (b,): which are queries, which are searched, and in which group each is.

    Raises:
        ValueError: if it tells, but the rows are not known.
    """
    found = {name: getattr(loader.dataset, name, None) for name in ("is_query", "is_gallery", "groups")}
    told = {name: torch.as_tensor(values) for name, values in found.items() if values is not None}
    if told and rows is None:
        raise ValueError("A data set with queries and gallery must be evaluated in order (shuffle=False).")
    return {name: values[rows] for name, values in told.items()}


def loader_at(loaders: Any, dataloader_idx: int) -> Any:
    """One of the Trainer's dataloaders, which are a list or a dict unless there is one only."""
    if isinstance(loaders, Mapping):
        return list(loaders.values())[dataloader_idx]
    return loaders[dataloader_idx] if isinstance(loaders, Sequence) else loaders
