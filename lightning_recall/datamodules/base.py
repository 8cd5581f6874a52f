"""What all data modules share: class-disjoint splits, class-balanced training batches, plain evaluation loaders."""

import warnings
from collections.abc import Callable, Mapping
from itertools import compress
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import Self

from lightning_recall._lightning import LightningDataModule, rank_zero_warn
from lightning_recall.checks import check_integer
from lightning_recall.data.chunk_loader import ChunkLoader
from lightning_recall.data.duplicates import find_duplicates, without_repeated
from lightning_recall.data.image_files import ImageFiles
from lightning_recall.data.images_in_memory import ImagesInMemory as ImagesInMemory
from lightning_recall.data.messages import counted
from lightning_recall.datamodules.splits import held_out_classes
from lightning_recall.datamodules.summary import check_queries, named, report
from lightning_recall.samplers import ClassBalancedBatchSampler


class LabeledDataset(Protocol):
    """A map-style data set of (image, label) that knows its labels (N,) without loading an image."""

    labels: NDArray[np.int64]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Any]: ...

    def select(self, rows: Any, training: bool = False) -> Self:
        """Some rows, by a mask (N,) or by their numbers, transformed for training or for evaluation."""


SamplerCallable = Callable[[NDArray[np.int64], int, int], ClassBalancedBatchSampler]
"""labels (N,) or (N, 2), batch_size, samples_per_class -> sampler"""


class RetrievalDataModule(LightningDataModule):
    """Base of the data modules: a subclass reads its data sets, this splits classes off and makes the loaders.

    A subclass overrides `read`, and `prepare_data` (once per machine) where there is something to prepare. Classes of
    training, validation and test are disjoint: a network is judged on classes that it has never seen.

    A training batch is a list of chunks (images (c, C, H, W) uint8, labels (c,)), together `batch_size` images over
    all processes. A batch of evaluation is one such pair, in the order of the data set.

    Args:
        batch_size: images that the loss compares, over all processes; a multiple of `samples_per_class`.
        samples_per_class: images of each class in a batch, from 2.
        chunk_size: images that a worker loads at a time, per process; under `lightning-recall` it is that of the model.
        eval_batch_size: images in one pass of validation and test, per process.
        val_classes: how many of the training classes are set aside to choose checkpoints by: a share below 1, or a
            number; 0: none, for a training on all classes without validation.
        num_workers: loader processes; 0 loads in the training process.
        seed: of the validation split, and of the batches unless the sampler has a seed of its own, other than 0.
        sampler: how batches are drawn: `ClassBalancedBatchSampler` with other settings, or another one of the kind.
            With the trainer's `overfit_batches` it never reshuffles.
        check_duplicates: whether the set-up looks for files that are listed or linked twice, which it leaves out, or
            refuses if their labels or splits differ; and for exact copies, of files and of images in memory, which it
            counts and keeps. It asks for the size of every file, and reads a part of those of one size.

    Raises:
        ValueError: for a number that is no integer or too small.
    """

    train_data: LabeledDataset | None
    val_data: LabeledDataset | None
    test_data: LabeledDataset | Mapping[str, LabeledDataset] | None

    def __init__(
        self,
        batch_size: int = 256,
        samples_per_class: int = 4,
        chunk_size: int = 128,
        eval_batch_size: int = 256,
        val_classes: float = 0.1,
        num_workers: int = 0,
        seed: int = 0,
        sampler: SamplerCallable | None = None,
        check_duplicates: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "samples_per_class": samples_per_class, "chunk_size": chunk_size}
        for name, value, least in (
            *((name, size, 1) for name, size in sizes.items()),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            check_integer(name, value, least)
        self.batch_size = batch_size
        self.samples_per_class = samples_per_class
        self.chunk_size = chunk_size
        self.eval_batch_size = eval_batch_size
        self.val_classes = val_classes
        self.num_workers = num_workers
        self.seed = seed
        self.sampler = sampler or ClassBalancedBatchSampler
        self.check_duplicates = check_duplicates

    def read(self) -> dict[str, Any]:
        """The data sets under "train", "val" and "test", those that there are.

        "test" may be a dict of several, by name. Without "val", classes of "train" are set aside.
        """
        raise NotImplementedError(f"{type(self).__name__} must override read() with the data sets that it has.")

    def setup(self, stage: str) -> None:
        """Reads the data sets, sets classes aside for validation, and says what there is."""
        if hasattr(self, "test_data"):
            return
        data = self.read()
        train, val, test = data.get("train"), data.get("val"), data.get("test")
        for name, part in (("training", train), ("validation", val), *named(test)):
            if part is not None and not len(part):
                raise ValueError(f"{type(self).__name__} has no image for {name}: look into its lists and folders.")
        if train is not None and val is None and self.val_classes:
            held = held_out_classes(train.labels, self.val_classes, self.seed)
            train, val = train.select(~held, training=True), train.select(held)
        elif train is not None:
            train = train.select(slice(None), training=True)
        train, val, test = self._without_duplicates(train, val, test)
        for name, part in (("training", train), ("validation", val), *named(test)):
            if part is not None:
                report(name, part)
            if part is not None and name != "training" and not hasattr(part, "ground_truth"):
                check_queries(name, part, required=stage != "predict")
        self.train_data, self.val_data, self.test_data = train, val, test

    def _without_duplicates(self, train: Any, val: Any, test: Any) -> tuple[Any, Any, Any]:
        """Leaves out files that are there twice, and warns of copies; one process looks for all."""
        tests = dict(test) if isinstance(test, Mapping) else {"": test}
        parts = [("training", train), ("validation", val), *((f"test {name}".rstrip(), tests[name]) for name in tests)]
        is_checked = [
            isinstance(data, (ImageFiles, ImagesInMemory)) and not hasattr(data, "ground_truth") for _, data in parts
        ]
        if not (self.check_duplicates and any(is_checked)):
            return train, val, test
        strategy = getattr(self.trainer, "strategy", None)
        looks = strategy is None or strategy.is_global_zero
        found = find_duplicates(list(compress(parts, is_checked))) if looks else None
        if strategy is not None:
            found = strategy.broadcast(found)
        assert found is not None  # process 0 has looked
        if found.error is not None:
            raise ValueError(found.error)
        for sentence in found.warnings:
            rank_zero_warn(sentence)
        pairs = iter(found.repeated)
        kept = [
            without_repeated(data, next(pairs)) if checked else data
            for (_, data), checked in zip(parts, is_checked, strict=True)
        ]
        tests = dict(zip(tests, kept[2:], strict=True))
        return kept[0], kept[1], tests if isinstance(test, Mapping) else tests[""]

    def train_dataloader(self) -> ChunkLoader:
        """Class-balanced batches as lists of chunks; each process loads its share of the same batches."""
        if self.train_data is None:
            raise ValueError(f"{type(self).__name__} has no training images: it is for validate, test and predict.")
        labels = self.train_data.labels
        super_labels = getattr(self.train_data, "super_labels", None)
        if super_labels is not None:
            labels = np.stack([labels, super_labels], 1)
        sampler = self.sampler(labels, self.batch_size, self.samples_per_class)
        sampler.seed = sampler.seed or self.seed
        sampler.reshuffle &= not getattr(self.trainer, "overfit_batches", 0)
        return ChunkLoader(self.train_data, sampler, self.chunk_size, num_workers=self.num_workers)

    def val_dataloader(self) -> Any:
        """The classes set aside from training."""
        return [] if self.val_data is None else self._eval_loader(self.val_data)

    def test_dataloader(self) -> Any:
        """The unseen classes; a dict of dataloaders where there are several test sets."""
        if self.test_data is None:
            raise ValueError(f"{type(self).__name__} has no test images of its own: test with another data module.")
        if isinstance(self.test_data, Mapping):
            return {name: self._eval_loader(data) for name, data in self.test_data.items()}
        return self._eval_loader(self.test_data)

    def predict_dataloader(self) -> Any:
        """The images of `test_dataloader`."""
        return self.test_dataloader()

    def teardown(self, stage: str) -> None:
        """Says how many files this process could not read, and forgets them."""
        train, val, test = (getattr(self, f"{part}_data", None) for part in ("train", "val", "test"))
        parts = [("training", train), ("validation", val), *named(test)]
        for name, part in parts:
            marks = getattr(part, "unreadable", None)
            if marks is not None and marks.any():
                unread = f"{int(marks.sum()):,} of {counted(len(marks), 'image file')} could not be read."
                warnings.warn(f"{name}: {unread}", stacklevel=2)  # by every process: each has read others
                marks.zero_()

    def _eval_loader(self, data: LabeledDataset) -> DataLoader[Any]:
        generator = torch.Generator()  # else a pass would draw from torch's own, and a resumed training differ
        return DataLoader(
            data,  # type: ignore[arg-type]  # a Protocol that has what DataLoader calls
            batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
            generator=generator,
        )
