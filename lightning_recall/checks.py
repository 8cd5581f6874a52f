"""Argument checks used by several packages. Each raises ValueError with the value given and the values allowed."""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def check_tensors(**values: Any) -> None:
    """Raises ValueError for an argument that is not a tensor, such as a list or an array; None is allowed."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(value).__name__}: convert it with torch.as_tensor.")


def check_labels(labels: Any) -> None:
    """Raises ValueError unless labels are a tensor of integers (N,)."""
    check_tensors(labels=labels)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers of shape (N,), got {labels.dtype} {tuple(labels.shape)}.")


def check_labelled_embeddings(embeddings: Any, labels: Any) -> None:
    """Raises ValueError unless embeddings (N, D) are floating point and labels (N,) integers, on one device."""
    check_tensors(embeddings=embeddings, labels=labels)
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings must be floating point of shape (N, D), got {embeddings.dtype} {tuple(embeddings.shape)}."
        )
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels must hold one label per embedding, shape ({len(embeddings)},), got shape {tuple(labels.shape)}."
        )
    check_labels(labels)
    if labels.device != embeddings.device:
        raise ValueError(f"labels are on {labels.device}, embeddings on {embeddings.device}: move one of them.")


def check_finite(embeddings: Tensor) -> None:
    """Raises ValueError if embeddings contain NaN or infinity; synchronises with the device."""
    # a finite sum has finite terms, and takes a tenth of the time; the sum of finite terms may overflow
    if not embeddings.detach().sum().isfinite() and not embeddings.isfinite().all():
        raise ValueError(
            "embeddings contain NaN or infinity: the network has diverged (lower the learning rate or clip gradients), "
            "or its input is broken."
        )


def check_integer(name: str, value: Any, minimum: int) -> None:
    """Raises ValueError unless `value` is a Python or NumPy integer of at least `minimum`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be an integer, at least {minimum}, got {value!r}.")
    if int(value) < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.")


def check_above_zero(**settings: float) -> None:
    """Raises ValueError unless every setting is a finite number above 0."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {value}.")


def ks_to_tuple(ks: int | Sequence[int]) -> tuple[int, ...]:
    """Cut-offs as a tuple of Python integers; a single integer counts as one cut-off.

    Raises:
        ValueError: if `ks` is empty, or contains duplicates, non-integers or values below 1.
    """
    values: tuple[Any, ...] = tuple(ks) if isinstance(ks, Iterable) else (ks,)
    integers = [int(k) for k in values if type(k) is not bool and isinstance(k, Integral)]
    if not values or len(integers) < len(values) or min(integers) < 1 or len(set(integers)) < len(integers):
        raise ValueError(f"ks must contain one or more distinct integers, each at least 1, got {ks!r}.")
    return tuple(integers)


Labels = Sequence[int] | Sequence[Sequence[int]] | NDArray[np.integer] | Tensor
"""Types accepted as labels."""


def labels_to_numpy(labels: Labels) -> NDArray[np.integer]:
    """Labels as an array (N,), or (N, 2) with super-classes.

    Raises:
        ValueError: if they have another shape, or are not integers that fit in int64.
    """
    try:
        array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    except (TypeError, ValueError) as error:  # raised for ragged lists and bfloat16 tensors
        raise ValueError(f"labels must be integers of shape (N,) or (N, 2): {error}.") from error
    if array.shape[1:] not in {(), (2,)} or not array.shape or not np.issubdtype(array.dtype, np.integer):
        first = f", with first value {array.flat[0]!r}" if array.size else ""
        raise ValueError(f"labels must be integers of shape (N,) or (N, 2), got {array.dtype} {array.shape}{first}.")
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"labels must be below 2**63, got {array.max()}.")
    return array


def first_line(error: Exception) -> str:
    r"""The first line of an error without full stop; the name of its class if it has no text.

    >>> first_line(ValueError("No such size.\n details")), first_line(AssertionError())
    ('No such size', 'AssertionError')
    """
    return str(error).split("\n")[0].strip().rstrip(".") or type(error).__name__


def check_same(module: Any, name: str, part: Any, attributes: Sequence[str]) -> None:
    """Raises ValueError if a part of a training and its module have attributes with different values.

    An attribute that the part does not have is not compared.

    Args:
        module: the module.
        name: what the part is, such as "loss".
        part: the part.
        attributes: names of attributes that the module has.
    """
    for attribute in attributes:
        expected = getattr(module, attribute)
        value = getattr(part, attribute, expected)
        if value != expected:
            raise ValueError(
                f"{attribute} of the {name} ({type(part).__name__}) is {value}, but that of {type(module).__name__} is "
                f"{expected}: set both to the same value."
            )
