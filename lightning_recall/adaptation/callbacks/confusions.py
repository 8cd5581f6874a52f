"""Confusion matrices of the last evaluation, one for each domain with labels."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recall.batch import type_and_shape


def confusions_of(module: Any, callback: str) -> dict[str, Tensor]:
    """Domain -> confusion matrix (K, K) on the CPU, without domains whose images have no labels.

    Args:
        module: its `confusions` is a dict: domain -> counts (K, K); rows are true classes, columns predictions.
        callback: name of the callback, for the error.

    Raises:
        ValueError: if the module has no such attribute, or a matrix has another form.
    """
    confusions = getattr(module, "confusions", None)
    if not isinstance(confusions, Mapping):
        raise ValueError(
            f"{callback} needs {type(module).__name__}.confusions: set it to "
            '{"source": counts (K, K), "target": counts (K, K)} at the end of an evaluation (rows are true classes, '
            f"columns are predictions), or remove {callback}."
        )
    for domain, matrix in confusions.items():
        if not isinstance(matrix, Tensor) or matrix.ndim != 2 or len(set(matrix.shape)) != 1:
            raise ValueError(
                f"{callback} needs square matrices (K, K) in {type(module).__name__}.confusions, got "
                f"{type_and_shape(matrix)} for {domain!r}."
            )
    return {domain: matrix.cpu() for domain, matrix in confusions.items() if matrix.any()}


def class_accuracies(confusion: Tensor) -> Tensor:
    """Accuracy (K,) of each class, in float64; NaN for classes without images.

    >>> class_accuracies(torch.tensor([[3, 1], [0, 0]])).tolist()
    [0.75, nan]
    """
    return confusion.diag().double() / confusion.sum(1)


def mean_class_accuracy(confusion: Tensor) -> float:
    """Mean accuracy over the classes that have images.

    >>> mean_class_accuracy(torch.tensor([[3, 1], [1, 1]]))
    0.625
    """
    return class_accuracies(confusion).nanmean().item()


def overall_accuracy(confusion: Tensor) -> float:
    """Fraction of correct images.

    >>> overall_accuracy(torch.tensor([[3, 1], [1, 1]]))
    0.6666666666666666
    """
    return (confusion.diag().sum() / confusion.sum().double()).item()


class Confused(NamedTuple):
    """The class that images of a class are most often mistaken for, and the fraction of these images."""

    label: int
    fraction: float


def most_confused(confusion: Tensor) -> list[Confused | None]:
    """For each class, the most frequent wrong prediction; the first of equal ones; None if there is none.

    >>> most_confused(torch.tensor([[5, 2, 3], [0, 4, 0], [0, 0, 0]]))
    [Confused(label=2, fraction=0.3), None, None]
    """
    wrong = confusion - torch.diag(confusion.diag())
    counts, labels = wrong.max(1)
    totals = confusion.sum(1)
    rows = zip(labels.tolist(), counts.tolist(), totals.tolist(), strict=True)
    return [Confused(label, count / total) if count else None for label, count, total in rows]
