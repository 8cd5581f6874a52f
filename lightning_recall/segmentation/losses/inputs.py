"""Checks of logits and target, and the number of processes that share a batch."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from lightning_recall.checks import check_integer, check_tensors
from lightning_recall.tensors import holds_integers


def check_classes(num_classes: Any, ignore_index: Any) -> None:
    """Raises ValueError unless there are two classes or more, and ignore_index is an integer or None."""
    check_integer("num_classes", num_classes, 2)  # one class: use two channels, background and foreground
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
        raise ValueError(f"ignore_index must be an integer or None, got {ignore_index!r}.")


def check_shapes(logits: Any, target: Any, num_classes: int) -> None:
    """Raises ValueError unless logits (B, C, ...) are floating point and target (B, ...) are integers of that size."""
    check_tensors(logits=logits, target=target)
    if logits.ndim < 2 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating point (B, C, ...), got {logits.dtype} {tuple(logits.shape)}.")
    if logits.shape[1] != num_classes:
        advice = "For two classes, use two channels: background and foreground. " if logits.shape[1] == 1 else ""
        raise ValueError(
            f"logits must have num_classes = {num_classes} channels in dimension 1, got shape {tuple(logits.shape)}. "
            f"{advice}Change the last layer of the network or num_classes."
        )
    if not holds_integers(target):
        raise ValueError(
            f"target must hold class indices as integers, got {target.dtype}: convert indices with target.long(); "
            "class probabilities are not supported, use target.argmax(1)."
        )
    expected = (logits.shape[0], *logits.shape[2:])
    if target.shape != expected:
        advice = "resize the logits, F.interpolate(logits, target.shape[-2:], mode='bilinear')"
        if target.shape == (expected[0], 1, *expected[1:]):
            advice = "remove its dimension 1, target.squeeze(1)"
        raise ValueError(
            f"target must have shape {expected} for logits {tuple(logits.shape)}, got {tuple(target.shape)}: {advice}."
        )
    if target.device != logits.device:
        raise ValueError(f"target is on {target.device}, logits on {logits.device}: move one of them.")


def split_ignored(target: Tensor, num_classes: int, ignore_index: int | None) -> tuple[Tensor, Tensor | None]:
    """Labels with 0 in place of ignored pixels, and where the pixels are valid.

    Reads two values, which synchronises with a GPU: there, a label out of range would otherwise end the process.
    `torch.compile` leaves that check out.

    Args:
        target: (B, ...) integers.
        num_classes: number of classes, C.
        ignore_index: the label of ignored pixels; None: there are none.

    Returns:
        labels: (B, ...) int64, each from 0 to C - 1.
        valid: (B, ...) bool, or None without ignore_index.

    Raises:
        ValueError: for a label below 0 or above C - 1 that is not ignore_index.
    """
    labels, valid = target.long(), None
    if ignore_index is not None:
        valid = labels != ignore_index
        labels = labels.masked_fill(~valid, 0)
    if labels.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"target must hold class indices from 0 to {num_classes - 1} or ignore_index ({ignore_index}), "
                f"got {low if low < 0 else high}: set ignore_index to the label of pixels without a class, or raise "
                "num_classes."
            )
    return labels, valid


def number_of_processes(loss: nn.Module) -> int:
    """How many processes share the batch: 1 in evaluation and without gradients, where each process is on its own."""
    if not (loss.training and torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()
