"""Names of classes and images, from what a run knows of them."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_recall._lightning import LightningModule, Trainer


def class_names_of(trainer: Trainer, module: LightningModule, loader: Any, largest: int) -> tuple[str, ...]:
    """Name of each class: `class_names` of the module, the data module or the data set; numbers if there are none.

    Args:
        trainer: the Trainer.
        module: its module.
        loader: the dataloader.
        largest: the largest class that is known to exist.
    """
    holders = (module, getattr(trainer, "datamodule", None), getattr(loader, "dataset", None))
    names: tuple[Any, ...] = next(filter(None, (getattr(holder, "class_names", None) for holder in holders)), ())
    return tuple(map(str, [*names, *range(len(names), largest + 1)]))


def image_names(dataset: Any, indices: Tensor | None) -> list[str] | None:
    """Name of the file of some images, for captions; None if it is not known.

    Args:
        dataset: a data set whose `image_path(index)` returns the path of an image.
        indices: (n,) indices in the data set.
    """
    if indices is None:
        return None
    if not callable(getattr(dataset, "image_path", None)):
        return [f"image {index}" for index in indices.tolist()]
    return [Path(dataset.image_path(index)).name for index in indices.tolist()]


def mask_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Name of the mask of each image: a different PNG file for each, named after the image.

    Folders below the one that all images share are kept. Images of one folder that differ only in their suffix keep
    it.

    >>> mask_names(["/data/a/1.jpg", "/data/b/1.jpg", "/data/b/1.png"])
    ['a/1.png', 'b/1.jpg.png', 'b/1.png.png']
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    if not absolute:
        return []
    shared = os.path.commonpath([path.parent for path in absolute])
    relative = [path.relative_to(shared) for path in absolute]
    stems = [path.with_suffix("") for path in relative]
    counts = Counter(stems)
    pairs = zip(relative, stems, strict=True)
    return [f"{(path if counts[stem] > 1 else stem).as_posix()}.png" for path, stem in pairs]
