"""The dataloaders of a Trainer: one, a list, a dict, or nested lists and dicts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from lightning_recall._lightning import Trainer
from lightning_recall.batch import type_and_shape


def loaders_of(trainer: Trainer) -> Any:
    """The dataloaders that the Trainer evaluates."""
    return trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders


def checks_all_batches(trainer: Trainer) -> bool:
    """Whether the sanity check covers all validation batches."""
    return list(trainer.num_sanity_val_batches) == list(trainer.num_val_batches)


def named_loaders(loaders: Any) -> dict[int | str, Any]:
    """The Trainer's dataloaders, in order, keyed by dict key or index; nested keys are joined by "/"."""
    if isinstance(loaders, Mapping):
        pairs: list[tuple[Any, Any]] = list(loaders.items())
    elif isinstance(loaders, list | tuple):
        pairs = list(enumerate(loaders))
    else:
        return {0: loaders}
    flattened: dict[int | str, Any] = {}
    for name, part in pairs:
        if isinstance(part, Mapping | list | tuple):
            flattened |= {f"{name}/{inner}": loader for inner, loader in named_loaders(part).items()}
        else:
            flattened[name] = part
    return flattened


def check_loaders(loaders: Any) -> None:
    """Rejects a list of batches, which Lightning treats as a list of dataloaders.

    Raises:
        ValueError: if an entry is a tensor, array, string or integer instead of a dataloader.
    """
    for name, loader in named_loaders(loaders).items():
        if isinstance(loader, Tensor | np.ndarray | str | int):
            raise ValueError(
                f"Dataloader {name} is {type_and_shape(loader)}. Lightning treats a list or dict as several "
                "dataloaders: pass a list of batches as DataLoader(batches, batch_size=None)."
            )


def loader_at(loaders: Any, dataloader_idx: int) -> Any:
    """The dataloader with this index."""
    return list(named_loaders(loaders).values())[dataloader_idx]
