"""Writes the masks that `predict` computes."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.batch import type_and_shape
from lightning_recall.callbacks.class_colors import class_colors
from lightning_recall.callbacks.dataloaders import loader_at, named_loaders
from lightning_recall.callbacks.index_checks import check_recorded
from lightning_recall.callbacks.index_recorder import record_indices, required_indices, stop_recording
from lightning_recall.callbacks.output import (
    end_progress_bar,
    file_name,
    output_path,
    print_path,
    unused_paths,
    writes_files,
)
from lightning_recall.segmentation.callbacks.names import class_names_of, mask_names
from lightning_recall.segmentation.data import SegmentationTransforms
from lightning_recall.segmentation.data.mask_check import image_size

REQUIRES_INDICES = "MaskWriter names each mask after its image"


class MaskWriter(Callback):
    """Writes the masks that `predict` computes as PNG files: the value of a pixel is its class.

    The files are in `masks` (or `masks-1`, ...) in the run's folder and named after the images, whose folders are kept;
    images without a file are numbered. Each mask has the size of the prediction, or, where the data set's transforms
    have `resize` (and no `eval_transform`), that of the image file, by nearest-neighbour interpolation. A palette shows
    the classes in the colours of the data module (`colors`), or in colours that differ for colour-blind readers.
    Several dataloaders have one folder each.

    Works with every LightningModule whose `predict_step` returns classes (B, H, W). The data set has
    `image_path(index)`, or its masks are numbered.

    Raises:
        ValueError: before the first batch, if the data set indices of the images are unknown (see `index_recorder`);
            for predictions of another form.
    """

    def __init__(self) -> None:
        self.root = Path()
        self.names: list[list[str]] = []  # of the masks of each dataloader
        self.folders: list[str] = []  # of each dataloader

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Records the data set index of each image."""
        if stage == "predict":
            record_indices(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the recording."""
        if stage == "predict":
            stop_recording(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Chooses a new folder, and the name of each mask."""
        check_recorded(trainer.predict_dataloaders, REQUIRES_INDICES)
        loaders = named_loaders(trainer.predict_dataloaders)
        self.folders = [file_name(str(name)) if len(loaders) > 1 else "" for name in loaders]
        self.names = [names_of_masks(loader.dataset) for loader in loaders.values()]
        if not writes_files(trainer):
            return
        (path,) = unused_paths(output_path(trainer, "masks"))
        self.root = Path(trainer.strategy.broadcast(str(path)))
        self.root.mkdir(exist_ok=True)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the masks of a batch."""
        check_predictions(outputs, type(pl_module).__name__)
        loader = loader_at(trainer.predict_dataloaders, dataloader_idx)
        indices = required_indices(loader, batch_idx, len(outputs), REQUIRES_INDICES)
        if not writes_files(trainer):
            return
        colors = getattr(getattr(trainer, "datamodule", None), "colors", None)
        if colors is None:
            colors = class_colors(len(class_names_of(trainer, pl_module, loader, int(outputs.max()))))
        palette = np.asarray(colors, dtype=np.uint8).ravel().tolist()
        for index, mask in zip(indices.tolist(), outputs.cpu().numpy().astype(np.uint8), strict=True):
            path = self.root / self.folders[dataloader_idx] / self.names[dataloader_idx][index]
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(mask)
            image.putpalette(palette)
            height, width = size_before_resize(loader.dataset, index) or mask.shape
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.NEAREST)
            image.save(path)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the folder."""
        if writes_files(trainer) and trainer.is_global_zero:
            end_progress_bar(trainer)
            print_path("Masks (the value of a pixel is its class)", self.root)


def names_of_masks(dataset: Any) -> list[str]:
    """Name of the mask of each item of a data set."""
    size = len(dataset)
    if callable(getattr(dataset, "image_path", None)):
        return mask_names([dataset.image_path(index) for index in range(size)])
    return [f"{index:0{len(str(max(size - 1, 0)))}d}.png" for index in range(size)]


def size_before_resize(dataset: Any, index: int) -> tuple[int, int] | None:
    """Height and width of an image file whose image was resized as a whole; None if it was not, or has no file."""
    transforms = getattr(dataset, "transforms", None)
    resizes = isinstance(transforms, SegmentationTransforms) and transforms.resize and not transforms.eval_transform
    return image_size(dataset.image_path(index)) if resizes and hasattr(dataset, "image_path") else None


def check_predictions(outputs: Any, module: str) -> None:
    """Checks what a `predict_step` returned.

    Raises:
        ValueError: if it is not a tensor (B, H, W) of integers from 0 to 255.
    """
    if (
        not isinstance(outputs, Tensor)
        or outputs.ndim != 3
        or outputs.is_floating_point()
        or (outputs.numel() and not 0 <= int(outputs.min()) <= int(outputs.max()) <= 255)
    ):
        raise ValueError(
            "MaskWriter needs a predict_step that returns classes (B, H, W), integers from 0 to 255; that of "
            f"{module} returned {type_and_shape(outputs)}."
        )
