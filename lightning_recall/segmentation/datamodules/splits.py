"""Holds out random images for validation and test."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lightning_recall.data.messages import pluralize, shorten
from lightning_recall.segmentation.data import SegmentationFiles


def hold_out(
    data: SegmentationFiles, fractions: Mapping[str, float], seed: int, root: Path
) -> dict[str, SegmentationFiles]:
    """Splits images at random: a fraction, but at least one image, for each split, and the others for "train".

    Args:
        data: all images.
        fractions: split -> fraction; a split with fraction 0 is left out.
        seed: random seed.
        root: folder of the images, for messages.

    Raises:
        ValueError: if no image is left for training.
    """
    sizes = {split: max(1, round(fraction * len(data))) for split, fraction in fractions.items() if fraction}
    if sum(sizes.values()) >= len(data):
        wanted = " and ".join(f"{size} for {split}" for split, size in sizes.items())
        raise ValueError(
            f"{shorten(root)} holds {pluralize(len(data), 'training image')}: too few to hold out {wanted}. Add "
            f"images, or set {' and '.join(f'{split}_fraction' for split in sizes)} to 0."
        )
    order = np.random.default_rng(seed).permutation(len(data))
    parts = {}
    for split, size in sizes.items():
        parts[split], order = data.select(np.sort(order[:size])), order[size:]
    return {"train": data.select(np.sort(order)), **parts}
