"""Checks of the batches of two domains."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_recall.adaptation.images import check_images
from lightning_recall.batch import is_pair, type_and_shape
from lightning_recall.tensors import holds_integers

DOMAINS = ("source", "target")
NO_LABEL = -1
"""label of an image whose class is not known, in evaluation batches"""
PAIR_ADVICE = (
    "let the data set return pairs (image, label), with the class as an integer, or choose these two in the "
    "collate_fn of the dataloader"
)


class DomainBatch(NamedTuple):
    """Source images (B, 3, H, W), their labels (B,), and target images (B, 3, H, W)."""

    source: Tensor
    labels: Tensor
    target: Tensor


def domain_batch(batch: Any, num_classes: int, equal_sizes: bool = False) -> DomainBatch:
    """The parts of a training batch {"source": (images, labels), "target": images}.

    The target may be a pair too: its second part is not read, so labels of target images have no effect.

    Args:
        batch: what the dataloader yields, as Lightning's CombinedLoader of two dataloaders does.
        num_classes: number of classes.
        equal_sizes: whether both domains must have equally many images.

    Raises:
        ValueError: for another type or shape, a domain without images, domains with different channels, heights or
            widths, and labels that are not integers from 0 to num_classes - 1.
    """
    has_domains = isinstance(batch, Mapping) and set(batch) == set(DOMAINS) and batch["target"] is not None
    if not has_domains or not is_pair(batch["source"]):
        raise ValueError(
            'A training batch must be {"source": (images, labels), "target": images}, got '
            f"{batch_description(batch)}: {batch_advice(batch)}."
        )
    (source, labels), target = batch["source"], images_of(batch["target"])
    for name, images in zip(DOMAINS, (source, target), strict=True):
        check_images(images, name)
    if source.shape[1:] != target.shape[1:]:
        raise ValueError(
            "Images of both domains must have the same channels, height and width, got "
            f"{tuple(source.shape[1:])} in the source and {tuple(target.shape[1:])} in the target: resize or convert "
            "them with the same transform."
        )
    if equal_sizes and len(source) != len(target):
        raise ValueError(
            f"This method needs equally many images of both domains, got {len(source)} of the source and {len(target)} "
            "of the target: use the same batch_size, and drop_last=True in both dataloaders."
        )
    if labels.shape != source.shape[:1]:
        raise ValueError(
            f"Source labels must have shape ({len(source)},), one for each image, got {tuple(labels.shape)}"
            f"{label_advice(labels)}."
        )
    check_labels(labels, num_classes)
    return DomainBatch(source, labels.long(), target)


def evaluation_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and labels (B,) of an evaluation batch (images, labels), or of images without labels.

    Images without labels are a tensor, or the only item of a list, as from a `TensorDataset` of images.

    Returns:
        Images, and labels; `NO_LABEL` for images without labels.

    Raises:
        ValueError: for another type or shape.
    """
    if isinstance(batch, list | tuple) and len(batch) == 1:
        (batch,) = batch
    images = batch if isinstance(batch, Tensor) else batch[0] if is_pair(batch) else None
    if images is None:
        both = isinstance(batch, Mapping) and set(batch) == set(DOMAINS)
        advice = 'pass {"source": loader, "target": loader} without CombinedLoader' if both else PAIR_ADVICE
        raise ValueError(
            "An evaluation batch must be a pair (images, labels), or images without labels, got "
            f"{type_and_shape(batch)}: {advice}."
        )
    check_images(images, "evaluation")
    labels = torch.full(images.shape[:1], NO_LABEL, device=images.device) if isinstance(batch, Tensor) else batch[1]
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"Labels must have shape ({len(images)},), one for each image, got {tuple(labels.shape)}"
            f"{label_advice(labels)}."
        )
    return images, labels


def images_of(batch: Any) -> Any:
    """The images of a batch: its first part if it is a sequence; the other parts are not read."""
    is_sequence = isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 0
    return batch[0] if is_sequence else batch


def check_labels(labels: Tensor, num_classes: int, allow_missing: bool = False) -> None:
    """Raises ValueError unless labels (B,) are integers from 0 to num_classes - 1.

    Reads two numbers, which synchronises with the device.

    Args:
        labels: (B,).
        num_classes: number of classes.
        allow_missing: whether `NO_LABEL` is allowed.
    """
    if not holds_integers(labels):
        raise ValueError(f"Labels must be integers, got {labels.dtype}: convert them with .long().")
    if not len(labels):
        return
    lowest, highest = torch.stack([labels.min(), labels.max()]).tolist()
    if not (NO_LABEL if allow_missing else 0) <= lowest <= highest < num_classes:
        missing = f", or {NO_LABEL} for images without label" if allow_missing else ""
        raise ValueError(
            f"Labels must be from 0 to {num_classes - 1}{missing}, got labels from {lowest} to {highest}: set "
            "num_classes to that of the data."
        )


def batch_advice(batch: Any) -> str:
    """How to make a training batch of both domains of one that is not."""
    if isinstance(batch, Mapping) and set(batch) == set(DOMAINS) and None not in batch.values():
        return PAIR_ADVICE
    return 'pass CombinedLoader({"source": loader, "target": loader}, mode="min_size") or mode="max_size_cycle"'


def label_advice(labels: Tensor) -> str:
    """How to make labels (B,) of a matrix: one-hot vectors, or a column."""
    if labels.ndim != 2:
        return ""
    return ": remove the last dimension with .squeeze(1)" if labels.shape[1] == 1 else ": use labels.argmax(1)"


def batch_description(batch: Any) -> str:
    """What a training batch holds, for error messages."""
    if not isinstance(batch, Mapping):
        return type_and_shape(batch)
    return "{" + ", ".join(f"{key!r}: {type_and_shape(part)}" for key, part in batch.items()) + "}"
