"""Keeps the evaluation transform of the images with the module that was trained on them."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from lightning_recall._lightning import LightningModule, rank_zero_warn
from lightning_recall.data import ImageTransforms
from lightning_recall.data.decoding import decode, read_resampled

CHECKPOINT_KEY = "preprocessing"
SAVED = ("size", "resize", "longest_side", "mode", "reducing_gap")
"""settings of `ImageTransforms` that evaluation depends on"""
CUSTOM = "custom"
"""entry in a checkpoint: name of an `eval_transform`, whose code a checkpoint does not hold"""


class ModuleWithPreprocessing(LightningModule):
    """Remembers how evaluation turns an image file into a tensor, and does the same with other images.

    The settings are those of the data module in training, and are saved in checkpoints. A module without them takes
    them from the data module of a test, validation or prediction.

    Attributes:
        image_transforms: the settings; may be set. None: unknown.
        custom_transform: name of the `eval_transform` whose code the checkpoint does not hold; None: there is none.
    """

    image_transforms: ImageTransforms | None = None
    custom_transform: str | None = None

    def preprocess(self, image: str | Path | Image.Image | Tensor) -> Tensor:
        """The input of the model for one image, exactly as evaluation makes it: (C, size, size) uint8.

        Args:
            image: path of a file, PIL image, or tensor (C, H, W) uint8 with 1 channel (grey) or 3 (RGB).

        Raises:
            ValueError: if the settings are unknown, or for another type, or a tensor of another dtype or shape.
        """
        transforms = self.image_transforms
        if transforms is None:
            reason = (
                f"its eval_transform {self.custom_transform} is code, which checkpoints do not hold"
                if self.custom_transform
                else "it was not trained or tested with a data module that has ImageTransforms, or was saved by an "
                "earlier version"
            )
            raise ValueError(
                f"{type(self).__name__} does not know how to preprocess images, because {reason}: set "
                "module.image_transforms = lightning_recall.data.ImageTransforms(...) as in training."
            )
        resampling, then = transforms.steps(training=False)
        if isinstance(image, (str, Path)):
            pixels = read_resampled(image, resampling, transforms.mode, reducing_gap=transforms.reducing_gap)
        else:
            if not isinstance(image, (Tensor, Image.Image)):
                raise ValueError(f"preprocess takes a path, a PIL image or a tensor, got {type(image).__name__}.")
            opened = to_pil(image) if isinstance(image, Tensor) else upright_copy(image)
            pixels = decode(opened, resampling, transforms.mode)
        inputs: Tensor = then(pixels)
        return inputs

    def on_fit_start(self) -> None:
        """Remembers the transforms of the data module."""
        super().on_fit_start()
        transforms = self._transforms_of_data()
        if transforms is not None:
            self.image_transforms, self.custom_transform = transforms, None

    def on_test_start(self) -> None:
        """Compares the transforms of the data module with those of the training."""
        super().on_test_start()
        self._compare_transforms()

    def on_validation_start(self) -> None:
        """Compares the transforms of the data module with those of the training."""
        super().on_validation_start()
        self._compare_transforms()

    def on_predict_start(self) -> None:
        """Compares the transforms of the data module with those of the training."""
        super().on_predict_start()
        self._compare_transforms()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the settings, as plain values."""
        super().on_save_checkpoint(checkpoint)
        saved = self.preprocessing_settings()
        if saved is not None:
            checkpoint[CHECKPOINT_KEY] = saved

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the settings."""
        super().on_load_checkpoint(checkpoint)
        self.set_preprocessing(checkpoint.get(CHECKPOINT_KEY))

    def preprocessing_settings(self) -> dict[str, Any] | None:
        """The settings as plain values, or {"custom": name of the `eval_transform`}; None if they are unknown."""
        transforms = self.image_transforms
        if transforms is not None and transforms.eval_transform is None:
            return {name: getattr(transforms, name) for name in SAVED}
        if transforms is None and self.custom_transform is None:
            return None
        return {CUSTOM: self.custom_transform if transforms is None else type(transforms.eval_transform).__name__}

    def set_preprocessing(self, saved: dict[str, Any] | None) -> None:
        """Takes the settings that `preprocessing_settings` returned; None changes nothing."""
        if saved is not None:
            self.custom_transform = saved.get(CUSTOM)
            self.image_transforms = None if CUSTOM in saved else ImageTransforms(**saved)

    def _transforms_of_data(self) -> ImageTransforms | None:
        """The transforms of the Trainer's data module, with numbers for the sizes; None if it has none."""
        transforms = getattr(getattr(self.trainer, "datamodule", None), "transforms", None)
        return transforms.for_model(None) if isinstance(transforms, ImageTransforms) else None

    def _compare_transforms(self) -> None:
        """Warns if the data module evaluates with other transforms; remembers them if none are known."""
        used, known = self._transforms_of_data(), self.image_transforms
        if used is None or self.custom_transform is not None:
            return
        if known is None:
            self.image_transforms = used
        elif describe(used) != describe(known):
            rank_zero_warn(
                f"The model was trained on images with {describe(known)}, but the data module makes images with "
                f"{describe(used)}, so scores may be lower: set the same data.transforms."
            )


def describe(transforms: ImageTransforms) -> str:
    """The settings that evaluation uses, such as "size=224, resize=256, mode=RGB"."""
    names = ["mode"] if transforms.longest_side is None else ["longest_side", "mode"]
    crops = transforms.longest_side is None and transforms.eval_transform is None
    settings = [f"{name}={getattr(transforms.for_model(None), name)}" for name in [*["size", "resize"] * crops, *names]]
    if transforms.eval_transform is not None:
        settings.append("eval_transform=" + " ".join(repr(transforms.eval_transform).split()))
    return ", ".join(settings)


def to_pil(image: Tensor) -> Image.Image:
    """A PIL image of a tensor (C, H, W) uint8.

    Raises:
        ValueError: for another type or shape.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"preprocess takes one image (C, H, W) uint8 with 1 or 3 channels, got {image.dtype} of shape "
            f"{tuple(image.shape)}."
        )
    converted: Image.Image = tv.to_pil_image(image.cpu())
    return converted


def upright_copy(image: Image.Image) -> Image.Image:
    """A copy of an image, rotated as its EXIF data say; keeps the file format, which 16-bit images need."""
    copied = image
    with suppress(Exception):  # broken EXIF tags may raise
        copied = ImageOps.exif_transpose(image)
    copied = image.copy() if copied is image else copied
    copied.format = image.format
    return copied
