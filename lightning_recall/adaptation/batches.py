"""Checks of a training batch of both domains."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lightning_recall.batch import is_pair, type_and_shape


class DomainBatch(NamedTuple):
    """Source images (B, 3, H, W), their labels (B,), and target images (B, 3, H, W)."""

    source: Tensor
    labels: Tensor
    target: Tensor


def domain_batch(batch: Any, num_classes: int) -> DomainBatch:
    """The parts of {"source": (images, labels), "target": images}; labels of target images are dropped, if given.

    Raises:
        ValueError: for another type or shape, or labels that are not below `num_classes`.
    """
    if not isinstance(batch, Mapping) or set(batch) != {"source", "target"} or not is_pair(batch["source"]):
        raise ValueError(
            'A batch must be {"source": (images, labels), "target": images}, got ' + type_and_shape(batch) + "."
        )
    (source, labels), target = batch["source"], batch["target"]
    target = target[0] if is_pair(target) else target
    return DomainBatch(source, labels.long(), target)
