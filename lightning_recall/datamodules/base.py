"""What all data modules share: class-disjoint splits, class-balanced training batches, plain evaluation loaders."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_recall.datamodules.chunk_loader import ChunkLoader
from lightning_recall.samplers import ClassBalancedBatchSampler


class LabeledDataset(Protocol):
    """A map-style data set of (image, label) that knows its labels (N,) without loading an image."""

    labels: NDArray[np.int64]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Any]: ...


class ImagesInMemory(Dataset[tuple[Tensor, Tensor]]):
    """Images (N, C, H, W) uint8 and labels (N,) int64, held in memory."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images = torch.from_numpy(images)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image (C, H, W) uint8 and label, a scalar."""
        return self.images[index], torch.tensor(self.labels[index])

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Many at a time."""
        return list(zip(self.images[indices], torch.from_numpy(self.labels[indices]), strict=True))


class RetrievalDataModule(LightningDataModule):
    """Base of the data modules: a subclass fills three data sets, this makes the loaders.

    A subclass overrides `prepare_data` (once per machine) and `setup` (every process), which sets `train_data`,
    `val_data` and `test_data`. Their classes are disjoint: a network is judged on classes that it has never seen.

    A training batch is a list of chunks (images (c, C, H, W) uint8, labels (c,)), together `batch_size` images over
    all processes. A batch of evaluation is one such pair, in the order of the data set.

    Args:
        batch_size: images that the loss compares, over all processes; a multiple of `samples_per_class`.
        samples_per_class: images of each class in a batch, from 2.
        chunk_size: images that a worker loads at a time, per process; under `lightning-recall` it is that of the model.
        eval_batch_size: images in one pass of validation and test, per process.
        val_classes: how many of the training classes are set aside to choose checkpoints by: a share below 1, or a
            number.
        num_workers: loader processes; 0 loads in the training process.
        seed: of the validation split and of the batches.
        small_classes: what to do with training classes of fewer than `samples_per_class` images: "error" or "drop".
    """

    train_data: LabeledDataset
    val_data: LabeledDataset
    test_data: LabeledDataset

    def __init__(
        self,
        batch_size: int = 256,
        samples_per_class: int = 4,
        chunk_size: int = 128,
        eval_batch_size: int = 256,
        val_classes: float = 0.1,
        num_workers: int = 0,
        seed: int = 0,
        small_classes: Literal["error", "drop"] = "error",
    ) -> None:
        super().__init__()
        if eval_batch_size < 1:
            raise ValueError(f"eval_batch_size must be at least 1, got {eval_batch_size}.")
        self.batch_size = batch_size
        self.samples_per_class = samples_per_class
        self.chunk_size = chunk_size
        self.eval_batch_size = eval_batch_size
        self.val_classes = val_classes
        self.num_workers = num_workers
        self.seed = seed
        self.small_classes: Literal["error", "drop"] = small_classes

    def train_dataloader(self) -> ChunkLoader:
        """Class-balanced batches as lists of chunks; each process loads its share of the same batches."""
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        sampler = ClassBalancedBatchSampler(
            self.train_data.labels,
            self.batch_size,
            self.samples_per_class,
            self.seed,
            self.small_classes,
            reshuffle=not overfit,
        )
        return ChunkLoader(self.train_data, sampler, self.chunk_size, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """The classes set aside from training."""
        return self._eval_loader(self.val_data)

    def test_dataloader(self) -> DataLoader[Any]:
        """The unseen classes."""
        return self._eval_loader(self.test_data)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The images of `test_dataloader`."""
        return self._eval_loader(self.test_data)

    def _eval_loader(self, data: LabeledDataset) -> DataLoader[Any]:
        generator = torch.Generator()  # else a pass would draw from torch's own, and a resumed training differ
        return DataLoader(
            data,  # type: ignore[arg-type]  # a Protocol that has what DataLoader calls
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            generator=generator,
        )


def held_out_classes(labels: Sequence[int] | NDArray[np.int64], val_classes: float, seed: int) -> NDArray[np.bool_]:
    """Chooses classes at random and marks their rows: (N,) bool, True for validation.

    Args:
        labels: (N,) of the training split.
        val_classes: a share of the classes, above 0 and below 1, or a number of them, from 1.
        seed: of the choice.

    Raises:
        ValueError: if no class would be left for validation or for training.
    """
    classes = np.unique(np.asarray(labels))
    count = round(val_classes * len(classes)) if val_classes < 1 else int(val_classes)
    if not 0 < count < len(classes):
        raise ValueError(
            f"val_classes={val_classes} sets {count} of {len(classes)} classes aside; it must leave at least one for "
            "validation and one for training."
        )
    return np.isin(labels, np.random.default_rng(seed).permutation(classes)[:count])
