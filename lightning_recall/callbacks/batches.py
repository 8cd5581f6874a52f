"""What callbacks read from a batch and from the dataloaders of anybody's module."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_recall._lightning import LightningModule, Trainer

UNREADABLE = -100  # label of an image that could not be read and is not scored: torch's ignore_index


def inputs_of_batch(batch: Any) -> Any:
    """What forward takes of a batch (inputs, labels): a tensor (b, ...), or anything else.

    Raises:
        ValueError: if the batch is no pair.
    """
    if isinstance(batch, Sequence) and len(batch) == 2:
        return batch[0]
    raise ValueError(
        f"A batch of evaluation must be a pair (inputs, labels), got {describe(batch)}. For any other batch, have "
        'validation_step and test_step return {"embeddings": (b, D), "labels": (b,)}.'
    )


def labels_of_batch(outputs: Any, batch: Any) -> Tensor:
    """Labels (b,) of a batch: those that the step returned, else those of a pair (inputs, labels) or of a mapping.

    Raises:
        ValueError: if there are none, or they are no tensor with one axis.
    """
    if isinstance(outputs, Mapping) and "embeddings" in outputs and "labels" in outputs:
        labels = outputs["labels"]
    elif isinstance(batch, Mapping) and "labels" in batch:
        labels = batch["labels"]
    else:
        inputs_of_batch(batch)
        labels = batch[1]
    if not isinstance(labels, Tensor) or labels.ndim != 1:
        shape = f"a tensor {tuple(labels.shape)}" if isinstance(labels, Tensor) else describe(labels)
        is_one = labels.ndim == 0 if isinstance(labels, Tensor) else isinstance(labels, int | np.integer)
        hint = " One label is that of an item, not of a batch: give the dataloader a batch_size." if is_one else ""
        raise ValueError(f"The labels of a batch of evaluation must be a tensor (b,), got {shape}.{hint}")
    return labels


def embeddings_of_batch(trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any) -> Tensor:
    """Embeddings (b, D) of a batch: those under "embeddings" in what the step returned, else those of forward.

    Raises:
        ValueError: if there are none: forward takes the inputs of a pair (inputs, labels) only.
    """
    if isinstance(outputs, Mapping) and "embeddings" in outputs:
        embeddings, source = outputs["embeddings"], "validation_step or test_step"
    else:
        inputs, source = inputs_of_batch(batch), "forward"
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            embeddings = pl_module(inputs)
    size = len(labels_of_batch(outputs, batch))
    if not (isinstance(embeddings, Tensor) and embeddings.ndim == 2 and len(embeddings) == size):
        got = f"a tensor {tuple(embeddings.shape)}" if isinstance(embeddings, Tensor) else describe(embeddings)
        raise ValueError(f"{source} of {type(pl_module).__name__} must give embeddings ({size}, D), got {got}.")
    return embeddings


def describe(value: Any) -> str:
    """The kind of a value, for messages."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(repr, value))}"
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, list | tuple) else f"a {kind}"


def named_loaders(loaders: Any) -> dict[int | str, Any]:
    """The Trainer's dataloaders, in order, by name: a key of a dict, else a number; keys of nests joined by "/"."""
    if isinstance(loaders, Mapping):
        pairs: list[tuple[Any, Any]] = list(loaders.items())
    elif isinstance(loaders, list | tuple):
        pairs = list(enumerate(loaders))
    else:
        return {0: loaders}
    found: dict[int | str, Any] = {}
    for name, part in pairs:
        if isinstance(part, Mapping | list | tuple):
            found |= {f"{name}/{inner}": loader for inner, loader in named_loaders(part).items()}
        else:
            found[name] = part
    return found


def check_loaders(loaders: Any) -> None:
    """Refuses a list of batches, which Lightning takes for a list of dataloaders.

    Raises:
        ValueError: if a part of a batch stands where a dataloader should.
    """
    for name, loader in named_loaders(loaders).items():
        if isinstance(loader, Tensor | np.ndarray | str | int):
            raise ValueError(
                f"Dataloader {name} is {describe(loader)}. Lightning takes a list or dict for several dataloaders: "
                "give a list of batches as DataLoader(batches, batch_size=None)."
            )


def loader_at(loaders: Any, dataloader_idx: int) -> Any:
    """One of the Trainer's dataloaders, by number."""
    return list(named_loaders(loaders).values())[dataloader_idx]
