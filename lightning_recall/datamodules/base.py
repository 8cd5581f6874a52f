"""Base of the data modules: class-disjoint splits, class-balanced training batches, and evaluation loaders."""

import warnings
from collections.abc import Callable, Mapping
from itertools import compress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lightning_recall._lightning import LightningDataModule, rank_zero_warn
from lightning_recall.checks import check_integer
from lightning_recall.data import ChunkLoader, ImageFiles, ImagesInMemory, ImageTransforms, RetrievalDataset
from lightning_recall.data.duplicates import find_duplicates, without_repeated
from lightning_recall.data.messages import pluralize
from lightning_recall.datamodules.image_size import transforms_for
from lightning_recall.datamodules.splits import held_out_classes
from lightning_recall.datamodules.summary import check_queries, log_repeats, log_sizes, named_test_sets
from lightning_recall.samplers import ClassBalancedBatchSampler

SamplerFactory = Callable[[NDArray[np.int64], int, int], ClassBalancedBatchSampler]
"""labels (N,) or (N, 2), batch_size, samples_per_class -> sampler"""


class RetrievalDataModule(LightningDataModule):
    """Base of the data modules: a subclass reads the data sets; this class splits them and builds the loaders.

    A subclass overrides `read`, and `prepare_data` (called once per machine) if needed. The data sets are
    `RetrievalDataset`s, which may define queries, gallery, cameras and super-classes. Training, validation and test
    have disjoint classes: evaluation uses unseen classes.

    A training batch is a list of chunks (images (c, C, H, W) uint8, labels (c,)), with `batch_size` images in total
    over all processes. An evaluation batch is one such pair, in the order of the data set.

    Args:
        batch_size: global batch size, over all processes; the loss compares these images. A multiple of
            `samples_per_class`.
        samples_per_class: images of each class in a batch, at least 2.
        chunk_size: images that a worker loads at a time, per process; the command line links it to the model's
            `chunk_size`.
        eval_batch_size: batch size in validation and test, per process.
        val_classes: fraction (below 1) or number of training classes held out for validation; 0 disables validation.
        num_workers: loader processes; 0 loads in the training process.
        seed: seed of the validation split, and of the sampler if the sampler's own seed is 0.
        sampler: factory of the batch sampler: (labels, batch_size, samples_per_class) -> sampler. None:
            `ClassBalancedBatchSampler`. With the Trainer's `overfit_batches`, reshuffling is disabled.
        check_duplicates: whether setup searches for duplicates. Duplicate files are dropped (an error if labels or
            splits differ). Exact copies of files and of images in memory are reported and kept. Needs the size of every
            file, and partly reads files of equal size.
        loader_kwargs: further arguments of torch's DataLoader, for all loaders, such as `pin_memory` or
            `prefetch_factor`. By default, workers are persistent: they live until the end of the run, not of the epoch.

    Raises:
        ValueError: for a value that is not an integer or is too small.
    """

    train_data: RetrievalDataset | None
    val_data: RetrievalDataset | None
    test_data: RetrievalDataset | Mapping[str, RetrievalDataset] | None
    transforms: ImageTransforms  # of the subclasses that read image files
    given_transforms: ImageTransforms | None = None  # before the size for the model is chosen

    def __init__(
        self,
        batch_size: int = 256,
        samples_per_class: int = 4,
        chunk_size: int = 128,
        eval_batch_size: int = 256,
        val_classes: float = 0.1,
        num_workers: int = 0,
        seed: int = 0,
        sampler: SamplerFactory | None = None,
        check_duplicates: bool = True,
        loader_kwargs: dict[str, Any] | None = None,
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
        self.loader_kwargs = loader_kwargs or {}

    def read(self) -> dict[str, Any]:
        """Returns the data sets under the keys "train", "val" and "test"; each is optional.

        "test" may be a dict of several data sets by name. Without "val", classes of "train" are held out.
        """
        # abstract, but not an ABC: `read` may also be set on an instance
        raise NotImplementedError(f"{type(self).__name__} must override read().")

    def choose_image_size(self) -> bool:
        """Sets the size of `transforms` for the module of the Trainer; returns whether it changes the transforms."""
        if self.given_transforms is None:
            self.given_transforms = getattr(self, "transforms", None)
        if self.given_transforms is None:
            return False
        previous, self.transforms = self.transforms, transforms_for(self.given_transforms, self.trainer)
        return self.transforms != previous

    def setup(self, stage: str) -> None:
        """Reads the data sets, holds out validation classes, drops duplicates, and logs the sizes."""
        if not self.choose_image_size() and hasattr(self, "test_data"):
            return
        data = self.read()
        train, val, test = data.get("train"), data.get("val"), data.get("test")
        for name, part in (("training", train), ("validation", val), *named_test_sets(test)):
            if part is not None and not len(part):
                raise ValueError(f"{type(self).__name__} has no images for {name}: check its lists and folders.")
        if train is not None and val is None and self.val_classes:
            is_val = held_out_classes(train.labels, self.val_classes, self.seed)
            train, val = train.select(~is_val, training=True), train.select(is_val)
        elif train is not None:
            train = train.select(slice(None), training=True)
        train, val, test = self._without_duplicates(train, val, test)
        for name, part in (("training", train), ("validation", val), *named_test_sets(test)):
            if part is not None:
                log_sizes(name, part)
            if part is not None and name != "training" and not hasattr(part, "ground_truth"):
                check_queries(name, part, required=stage != "predict")
        self.train_data, self.val_data, self.test_data = train, val, test

    def _without_duplicates(self, train: Any, val: Any, test: Any) -> tuple[Any, Any, Any]:
        """Drops duplicate files and warns about copies; only rank 0 searches."""
        tests = dict(test) if isinstance(test, Mapping) else {"": test}
        parts = [("training", train), ("validation", val), *((f"test {name}".rstrip(), tests[name]) for name in tests)]
        is_checked = [
            isinstance(data, (ImageFiles, ImagesInMemory)) and not hasattr(data, "ground_truth") for _, data in parts
        ]
        if not (self.check_duplicates and any(is_checked)):
            return train, val, test
        strategy = getattr(self.trainer, "strategy", None)
        is_rank_zero = strategy is None or strategy.is_global_zero
        found = find_duplicates(list(compress(parts, is_checked))) if is_rank_zero else None
        if strategy is not None:
            found = strategy.broadcast(found)
        assert found is not None  # rank 0 has searched
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
        """Class-balanced batches as lists of chunks; each process loads its slice of every batch."""
        if self.train_data is None:
            raise ValueError(
                f"{type(self).__name__} has no training images: use it only for validate, test and predict."
            )
        labels = self.train_data.labels
        super_labels = getattr(self.train_data, "super_labels", None)
        if super_labels is not None:
            labels = np.stack([labels, super_labels], 1)
        sampler = self.sampler(labels, self.batch_size, self.samples_per_class)
        sampler.seed = sampler.seed or self.seed
        sampler.reshuffle &= not getattr(self.trainer, "overfit_batches", 0)
        log_repeats(self.train_data.labels, self.batch_size, self.samples_per_class)
        return ChunkLoader(self.train_data, sampler, self.chunk_size, **self._loader_settings)

    def val_dataloader(self) -> Any:
        """The held-out classes of the training set."""
        return [] if self.val_data is None else self._eval_loader(self.val_data)

    def test_dataloader(self) -> Any:
        """The unseen classes; a dict of dataloaders if there are several test sets."""
        if self.test_data is None:
            raise ValueError(f"{type(self).__name__} has no test images: use another data module for testing.")
        if isinstance(self.test_data, Mapping):
            return {name: self._eval_loader(data) for name, data in self.test_data.items()}
        return self._eval_loader(self.test_data)

    def predict_dataloader(self) -> Any:
        """The images of `test_dataloader`."""
        return self.test_dataloader()

    def check_data(self) -> None:
        """Reads the lists of files, so that `lightning-recall` reports a wrong path before it builds the model.

        Does nothing if `prepare_data` may still have to create the files.
        """
        if type(self).prepare_data is LightningDataModule.prepare_data:
            self.read()

    def teardown(self, stage: str) -> None:
        """Warns how many files this process could not read, and resets the count."""
        train, val, test = (getattr(self, f"{part}_data", None) for part in ("train", "val", "test"))
        parts = [("training", train), ("validation", val), *named_test_sets(test)]
        for name, part in parts:
            mask = getattr(part, "unreadable", None)
            if mask is not None and mask.any():
                unread = f"{int(mask.sum()):,} of {pluralize(len(mask), 'image file')} could not be read."
                warnings.warn(f"{name}: {unread}", stacklevel=2)  # on every process, since each reads different files
                mask.zero_()

    @property
    def _loader_settings(self) -> dict[str, Any]:
        return {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0} | self.loader_kwargs

    def _eval_loader(self, data: RetrievalDataset) -> DataLoader[Any]:
        # Without a generator, each pass would draw from the global generator, and a resumed run would differ from an
        # uninterrupted one.
        generator = torch.Generator()
        return DataLoader(
            data,  # type: ignore[arg-type]  # the Protocol has the methods that DataLoader calls
            batch_size=self.eval_batch_size,
            generator=generator,
            **self._loader_settings,
        )


def prepares_data(data: LightningDataModule) -> bool:
    """Whether a data module makes its data in `prepare_data`, so that they may be missing before."""
    return type(data).prepare_data is not LightningDataModule.prepare_data
