"""A batch is a pair (inputs, labels). A large batch is a list of such pairs, one per chunk."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from torch import Tensor

IGNORED_LABEL = -100
"""Label of an image that the scores ignore, such as an unreadable file; the default `ignore_index` of torch."""

Batch = Any
"""A pair (inputs, labels (b,)), whose inputs are a tensor (b, ...) or a pytree of them; or a list of such pairs."""


def is_pair(batch: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a batch is a pair (inputs, labels), with labels a tensor (b, ...)."""
    has_two_items = isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) == 2
    return has_two_items and isinstance(batch[1], Tensor) and batch[1].ndim > 0


def chunks_of_batch(batch: Batch) -> list[tuple[Any, Tensor]]:
    """Returns the chunks (inputs, labels) of a training batch.

    A pair is one chunk; a list of pairs is one chunk per pair. Returns an empty list for anything else.
    """
    if is_pair(batch):
        return [(batch[0], batch[1])]
    chunks = batch if isinstance(batch, list | tuple) else []
    return [(chunk[0], chunk[1]) for chunk in chunks] if all(map(is_pair, chunks)) else []


def labels_of_pair(batch: Batch) -> Tensor | None:
    """Labels (b, ...) of a batch that is a pair (inputs, labels); None for any other batch."""
    return batch[1] if is_pair(batch) else None


def evaluation_inputs(batch: Batch) -> Any:
    """Returns the inputs of an evaluation batch (inputs, labels); they are passed to the module's forward.

    Raises:
        ValueError: if the batch is not a pair.
    """
    if isinstance(batch, Sequence) and len(batch) == 2:
        return batch[0]
    raise ValueError(
        f"An evaluation batch must be a pair (inputs, labels), got {type_and_shape(batch)}. For any other batch, have "
        'validation_step and test_step return {"embeddings": (b, D), "labels": (b,)}.'
    )


def evaluation_labels(outputs: Any, batch: Batch) -> Tensor:
    """Labels (b,) of an evaluation batch.

    If the step returned "labels" beside "embeddings", these are the labels. Otherwise the labels are taken from the
    batch, which is a mapping with "labels" or a pair (inputs, labels).

    Raises:
        ValueError: if there are no labels, or they are not a tensor with one dimension.
    """
    if isinstance(outputs, Mapping) and "embeddings" in outputs and "labels" in outputs:
        labels = outputs["labels"]
    elif isinstance(batch, Mapping) and "labels" in batch:
        labels = batch["labels"]
    else:
        evaluation_inputs(batch)
        labels = batch[1]
    if not isinstance(labels, Tensor) or labels.ndim != 1:
        is_scalar = labels.ndim == 0 if isinstance(labels, Tensor) else isinstance(labels, int | np.integer)
        hint = " The batch contains a single item without a batch dimension: set batch_size in the DataLoader."
        hint = hint if is_scalar else ""
        got = type_and_shape(labels)
        raise ValueError(f"The labels of an evaluation batch must be a tensor (b,), got {got}.{hint}")
    return labels


def type_and_shape(value: Any) -> str:
    """Type and size of a value, for error messages."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(repr, value))}"
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, list | tuple) else f"a {kind}"
