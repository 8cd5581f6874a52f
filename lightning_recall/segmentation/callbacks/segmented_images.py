"""Writes pictures of what a segmentation network predicts: image, truth, prediction and wrong pixels."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.batch import type_and_shape
from lightning_recall.callbacks.dataloaders import loader_at, named_loaders
from lightning_recall.callbacks.index_recorder import indices_of_batch, record_indices, stop_recording
from lightning_recall.callbacks.output import file_name, output_path, save_picture, writes_files
from lightning_recall.checks import check_integer
from lightning_recall.segmentation.batches import checked_batch
from lightning_recall.segmentation.callbacks.names import class_names_of, image_names
from lightning_recall.segmentation.data import IGNORED_PIXEL
from lightning_recall.segmentation.plots import SegmentedImage, draw_segmented_images, image_miou

Choice = Literal["random", "worst", "best"]
"""which images are shown: random ones, or those with the lowest or the highest mIoU"""


class Candidate(NamedTuple):
    """An image that may be drawn.

    key: images with small keys are drawn.
    position: index in the data set, or another number that no other image has.
    image: the image.
    """

    key: float
    position: int
    image: SegmentedImage


class SegmentedImages(Callback):
    """After a test, draws images with truth, prediction and wrong pixels: `segmented_images.png`.

    Each row shows one image, its mIoU over the classes in its truth or prediction, and the share of wrong pixels among
    those that are not ignored. A legend names the classes; large regions have the number of their class, and all
    colours differ for colour-blind readers. The images with the lowest mIoU are in `segmented_images_worst.png`. Images
    without a valid pixel are not drawn. With several dataloaders, each has its own pictures. The pictures are also sent
    to loggers that support images.

    Works with every LightningModule whose `test_step` returns {"predictions": classes (B, H, W)}, with batches
    (images (B, 3, H, W), masks (B, H, W)). Images are uint8 or floats; floats outside of [0, 1] are scaled to their
    range. Pixels whose mask is the module's `ignore_index`, 255 without one, are ignored. Class names are
    `class_names` of the module, the data module or the data set. Only a few images are kept in memory.

    Args:
        num_images: images per picture.
        choices: which images: "random", "worst", "best"; one picture for each choice.
        seed: seed of the random choice, which does not depend on the number of processes.

    Raises:
        ValueError: for a number below 1 or unknown choices; during a test, if the batches or the predictions have
            another form.
    """

    def __init__(self, num_images: int = 6, choices: Sequence[Choice] = ("random", "worst"), seed: int = 0) -> None:
        check_integer("num_images", num_images, 1)
        if not choices or isinstance(choices, str) or not set(choices) <= {"random", "worst", "best"}:
            raise ValueError(f"choices must be some of random, worst and best, got {choices!r}.")
        self.num_images = num_images
        self.choices = tuple(choices)
        self.seed = seed
        self.candidates: dict[tuple[int, Choice], list[Candidate]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Records the data set index of each image, for the captions."""
        if stage == "test":
            record_indices(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the recording."""
        if stage == "test":
            stop_recording(trainer)
        self.candidates = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the images of an earlier test."""
        self.candidates = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the images of a batch that may be drawn."""
        images, masks = checked_batch(batch)
        predictions = predictions_of(outputs, masks, type(pl_module).__name__)
        loader = loader_at(trainer.test_dataloaders, dataloader_idx)
        indices = indices_of_batch(loader, batch_idx, len(masks))
        names = image_names(getattr(loader, "dataset", None), indices) or [""] * len(masks)
        truths = without_ignored(masks, getattr(pl_module, "ignore_index", IGNORED_PIXEL))
        for row in range(len(masks)):
            truth, prediction = truths[row].numpy(), predictions[row].cpu().long().numpy()
            miou = image_miou(truth, prediction)
            if np.isnan(miou):
                continue
            unknown = (batch_idx * trainer.world_size + trainer.global_rank) * len(masks) + row
            position = unknown if indices is None else int(indices[row])
            for choice in self.choices:
                key = self.key(choice, position, miou)
                kept = self.candidates.setdefault((dataloader_idx, choice), [])
                if len(kept) < self.num_images or key < kept[-1].key:
                    picture = SegmentedImage(to_picture(images[row]), truth, prediction, names[row]).shrunk()
                    kept.append(Candidate(key, position, picture))
                    kept.sort(key=lambda candidate: candidate[:2])
                    del kept[self.num_images :]

    def key(self, choice: Choice, position: int, miou: float) -> float:
        """Images with small keys are drawn."""
        if choice == "random":
            return float(np.random.default_rng([self.seed, position]).random())
        return miou if choice == "worst" else -miou

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the pictures."""
        if not writes_files(trainer):
            return
        loaders = named_loaders(trainer.test_dataloaders)
        for number, (loader_name, loader) in enumerate(loaders.items()):
            for choice in self.choices:
                kept = smallest(gathered(self.candidates.get((number, choice), [])), self.num_images)
                suffix = "" if choice == "random" else choice
                name = file_name("segmented_images", suffix, str(loader_name) if len(loaders) > 1 else "")
                path = output_path(trainer, f"{name}.png")  # must be called on all processes
                if kept and trainer.is_global_zero:
                    largest = max(max(candidate.image.classes()) for candidate in kept)
                    names = class_names_of(trainer, pl_module, loader, largest)
                    figure = draw_segmented_images([candidate.image for candidate in kept], names)
                    save_picture(trainer, figure, path, f"Segmented images, {choice}")


def smallest(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The candidates with the smallest keys, without repeats: a distributed sampler may repeat images."""
    unique = {candidate.position: candidate for candidate in candidates}
    return sorted(unique.values(), key=lambda candidate: candidate[:2])[:count]


def gathered(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates of all processes. Must be called on all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return candidates
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, candidates)
    return [candidate for part in parts for candidate in part]


def without_ignored(masks: Tensor, ignore_index: int | None) -> Tensor:
    """Masks (B, H, W) int64 on the CPU, with -1 for ignored pixels."""
    masks = masks.cpu().long()
    return masks if ignore_index is None else masks.masked_fill(masks == ignore_index, -1)


def predictions_of(outputs: Any, masks: Tensor, module: str) -> Tensor:
    """Predictions (B, H, W) that a `test_step` returned.

    Raises:
        ValueError: if there are none, or if they have another shape than the masks.
    """
    predictions = outputs.get("predictions") if isinstance(outputs, Mapping) else None
    if not isinstance(predictions, Tensor) or predictions.shape != masks.shape:
        found = type_and_shape(outputs if predictions is None else predictions)
        raise ValueError(
            f'SegmentedImages needs a test_step that returns {{"predictions": classes {tuple(masks.shape)}}}, of the '
            f"shape of the masks; that of {module} returned {found}."
        )
    return predictions


def to_picture(image: Tensor) -> NDArray[np.float64]:
    """Image (C, H, W) with one or three channels, uint8 or floats of any range, as (H, W, 3) in [0, 1]."""
    values = image.detach().cpu().double().numpy()
    if image.dtype == torch.uint8:
        values = values / 255
    elif values.min() < 0 or values.max() > 1:
        values = (values - values.min()) / max(np.ptp(values), 1e-9)
    picture: NDArray[np.float64] = np.broadcast_to(values, (3, *values.shape[1:])).transpose(1, 2, 0)
    return picture
