"""Checks of a batch (images, masks), and of the loss."""

from typing import Any

import torch
from torch import Tensor

from lightning_recall.batch import is_pair, type_and_shape
from lightning_recall.tensors import holds_integers


def checked_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and masks (B, H, W), as int64.

    Raises:
        ValueError: for another type, shape or dtype.
    """
    if not is_pair(batch) or not isinstance(batch[0], Tensor):
        raise ValueError(f"A batch must be a pair (images (B, 3, H, W), masks (B, H, W)), got {type_and_shape(batch)}.")
    images, masks = batch[0], batch[1]
    if images.ndim != 4 or masks.shape != (images.shape[0], *images.shape[2:]):
        advice = "; remove the channel of the masks with .squeeze(1)" if masks.ndim == 4 else ""
        raise ValueError(
            "Images must have shape (B, 3, H, W) and masks (B, H, W), of the same height and width, got "
            f"{tuple(images.shape)} and {tuple(masks.shape)}{advice}."
        )
    if not holds_integers(masks):
        raise ValueError(f"Masks must hold classes as integers, got {masks.dtype}: convert them with .long().")
    return images, masks.long()


def has_valid_pixel(target: Tensor, num_classes: int, ignore_index: int | None) -> bool:
    """Whether a mask (B, H, W) has a pixel with a class.

    Reads two numbers, which synchronises with the device.

    Raises:
        ValueError: for a label that is neither a class nor `ignore_index`.
    """
    is_class = (target >= 0) & (target < num_classes)
    is_wrong = ~is_class if ignore_index is None else ~is_class & (target != ignore_index)
    is_valid = is_class if ignore_index is None else is_class & (target != ignore_index)
    any_valid, any_wrong = torch.stack([is_valid.any(), is_wrong.any()]).tolist()
    if any_wrong:
        values = sorted(set(target[is_wrong].tolist()))
        shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
        raise ValueError(
            f"Masks must hold classes from 0 to {num_classes - 1}, or {ignore_index} for ignored pixels, got {shown}: "
            "set num_classes and ignore_index to those of the data."
        )
    return bool(any_valid)


def check_scalar(value: Any, name: str) -> None:
    """Raises ValueError unless a loss has returned one number.

    Args:
        value: what it returned.
        name: its class.
    """
    if not isinstance(value, Tensor) or value.ndim:
        raise ValueError(
            f"The loss must return one number, but {name} returned {type_and_shape(value)}: set its reduction to "
            '"mean", or wrap it.'
        )
