"""Base of the data modules for segmentation: checks the masks, and builds the loaders."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lightning_recall._lightning import LightningDataModule, rank_zero_info, rank_zero_warn
from lightning_recall.checks import check_integer
from lightning_recall.data.batches import EvaluationItems, EvaluationSampler, rank_and_world_size
from lightning_recall.data.messages import pluralize, quote, shorten
from lightning_recall.segmentation.data import (
    IGNORED_PIXEL,
    SegmentationFiles,
    SegmentationLoader,
    SegmentationTransforms,
    ShuffledBatchSampler,
)
from lightning_recall.segmentation.data.batches import collate, sizes_message
from lightning_recall.segmentation.data.mask_check import (
    MaskSummary,
    describe_frequencies,
    error_message,
    percent,
    summarize_masks,
)

SPLITS = {"train": "training", "val": "validation", "test": "test"}
"""key of `read` -> name in messages"""
CHECKED = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()}
"""stage -> the data sets whose masks setup checks"""


class SegmentationDataModule(LightningDataModule, ABC):
    """Base of the data modules for segmentation: a subclass reads the data sets; this class builds the loaders.

    A subclass sets `class_names` (and `colors`) and overrides `read`, and `prepare_data` (called once per machine) if
    needed.

    A batch is (images (B, 3, H, W) uint8, masks (B, H, W) int64): classes from 0, and 255 for ignored pixels. Training
    images are shuffled; those that do not fill the last batch are left out of this epoch. Order and augmentation depend
    only on `seed` and the epoch, so a run can resume in the middle of an epoch. Evaluation uses each image once, also
    on several processes.

    Args:
        batch_size: images per optimizer step, over all processes; a multiple of the number of processes.
        eval_batch_size: batch size in validation and test, per process; None: `batch_size`.
        num_workers: loader processes; 0 loads in the training process.
        transforms: settings of the joint transforms of image and mask.
        check_masks: whether setup reads all masks, on rank 0: it stops if a mask is missing, unreadable, of another
            size than its image or has values that are no class, and logs how frequent each class is.
        seed: seed of order and augmentation, and of splits that a subclass draws.

    Attributes:
        class_names: C names.
        num_classes: C.
        ignore_index: value of ignored pixels, 255.
        colors: (C, 3) uint8 colours for pictures; None: not defined.
        train_data: the training images, after setup; `val_data` and `test_data` accordingly.

    Raises:
        ValueError: for a value that is not an integer or is too small.
    """

    class_names: tuple[str, ...] = ()
    colors: NDArray[np.uint8] | None = None
    ignore_index = IGNORED_PIXEL
    train_data: Any
    val_data: Any
    test_data: Any

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        transforms: SegmentationTransforms | None = SegmentationTransforms(),
        check_masks: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", batch_size if eval_batch_size is None else eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            check_integer(name, value, least)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.transforms = transforms or SegmentationTransforms()
        self.check_masks = check_masks
        self.seed = seed
        self.summaries: dict[str, MaskSummary] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def class_frequencies(self) -> NDArray[np.float64]:
        """(C,) fraction of each class among the pixels of the training masks that are not ignored; needs setup.

        With `check_masks=False`, the first use reads the masks.
        """
        if "train" not in self.summaries:
            if self.train_data is None:
                raise ValueError(f"{type(self).__name__} has no training images, so it has no class frequencies.")
            self.summaries["train"] = summarize_masks(self.train_data, SPLITS["train"])
        return self.summaries["train"].class_frequencies

    @abstractmethod
    def read(self) -> dict[str, Any]:
        """Returns the data sets under the keys "train", "val" and "test"; each is optional."""

    def check_data(self) -> None:
        """Reads the lists of files, so that `lightning-recall` reports a wrong path before it builds the model.

        Does nothing if `prepare_data` may still have to create the files.
        """
        if type(self).prepare_data is LightningDataModule.prepare_data:
            self.read()

    def setup(self, stage: str = "fit") -> None:
        """Reads the data sets, checks their masks, and logs sizes and class frequencies."""
        if not hasattr(self, "test_data"):
            data = self.read()
            for split, name in SPLITS.items():
                part = data.get(split)
                if part is not None and not len(part):
                    raise ValueError(f"{type(self).__name__} has no images for {name}: check its folders.")
            train: Any = data.get("train")
            self.train_data = train.for_training() if hasattr(train, "for_training") else train
            self.val_data, self.test_data = data.get("val"), data.get("test")
            sizes = [f"{name} {len(data[split]):,}" for split, name in SPLITS.items() if data.get(split) is not None]
            rank_zero_info(f"images: {', '.join(sizes)}")
        for split in CHECKED[stage]:
            part = getattr(self, f"{split}_data")
            if isinstance(part, SegmentationFiles) and part.masks is None:
                raise ValueError(f"The {SPLITS[split]} images have no masks: use them only for predict, or add masks.")
            if self.check_masks and part is not None and split not in self.summaries:
                self._check(split, part)

    def _check(self, split: str, data: Any) -> None:
        """Reads the masks of a data set on rank 0; all processes raise the same error."""
        name, strategy = SPLITS[split], getattr(self.trainer, "strategy", None)
        is_rank_zero = strategy is None or strategy.is_global_zero
        summary = summarize_masks(data, name) if is_rank_zero else None
        if strategy is not None:
            summary = strategy.broadcast(summary)
        assert summary is not None  # rank 0 has read them
        if summary.errors:
            raise ValueError(error_message(name, summary.errors, len(data)))
        self._check_sizes(split, summary)
        self.check_summary(split, summary)
        warn_about_masks(name, summary, len(data), self.class_names)
        if split == "train":
            ignored = summary.num_ignored / max(1, summary.num_ignored + int(summary.pixel_counts.sum()))
            described = describe_frequencies(self.class_names, summary.class_frequencies)
            rank_zero_info(f"class frequencies: {described}; ignored pixels: {percent(ignored)}")
        self.summaries[split] = summary

    def check_summary(self, split: str, summary: MaskSummary) -> None:
        """Further checks of the masks of a split, for subclasses."""

    def _check_sizes(self, split: str, summary: MaskSummary) -> None:
        """Raises ValueError if images of different sizes would have to form a batch."""
        if split == "train":
            processes = getattr(self.trainer, "world_size", 1)
            keeps, size = self.transforms.keeps_train_size, self.batch_size // processes
        else:
            keeps, size = self.transforms.keeps_eval_size, self.eval_batch_size
        if keeps and size > 1 and len(summary.sizes) > 1:
            raise ValueError(f"{SPLITS[split]}: {sizes_message(summary.sizes, training=split == 'train')}")

    def train_dataloader(self) -> SegmentationLoader:
        """Shuffled batches; each process loads its slice of every batch."""
        if self.train_data is None:
            raise ValueError(
                f"{type(self).__name__} has no training images: use it only for validate, test and predict."
            )
        reshuffle = not getattr(self.trainer, "overfit_batches", 0)
        sampler = ShuffledBatchSampler(len(self.train_data), self.batch_size, self.seed, reshuffle)
        return SegmentationLoader(
            self.train_data, sampler, num_workers=self.num_workers, pin_memory=torch.cuda.is_available()
        )

    def val_dataloader(self) -> Any:
        """The validation images."""
        return [] if self.val_data is None else self._eval_loader(self.val_data)

    def test_dataloader(self) -> Any:
        """The test images."""
        if self.test_data is None:
            raise ValueError(f"{type(self).__name__} has no test images: use another data module for testing.")
        return self._eval_loader(self.test_data)

    def predict_dataloader(self) -> Any:
        """The test images."""
        return self.test_dataloader()

    def _eval_loader(self, data: Any) -> DataLoader[Any]:
        rank, world_size = rank_and_world_size()
        items: Any = EvaluationItems(data, IGNORED_PIXEL) if world_size > 1 else data
        return DataLoader(
            items,
            batch_size=self.eval_batch_size,
            sampler=EvaluationSampler(items, rank, world_size) if world_size > 1 else None,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            # Without a generator, each pass would draw from the global generator, and a resumed run would differ from
            # an uninterrupted one.
            generator=torch.Generator(),
        )


def warn_about_masks(name: str, summary: MaskSummary, count: int, class_names: tuple[str, ...]) -> None:
    """Warns about masks without a class, and in training about classes without pixels.

    Args:
        name: of the data set, such as "training".
        summary: what its masks hold.
        count: number of images.
        class_names: C names.

    Raises:
        ValueError: if no mask has a pixel of a class.
    """
    if len(summary.void_masks) == count:
        raise ValueError(f"{name}: all pixels of {pluralize(count, 'mask')} are ignored: check the ignored ids.")
    if summary.void_masks:
        have = "mask has" if len(summary.void_masks) == 1 else "masks have"
        rank_zero_warn(
            f"{name}: {len(summary.void_masks):,} of {count:,} {have} only ignored pixels, such as "
            f"{shorten(summary.void_masks[0])}."
        )
    missing = [quote(class_names[index]) for index in np.flatnonzero(summary.pixel_counts == 0)]
    if name != SPLITS["train"] or not missing:
        return
    if len(missing) == len(class_names) - 1:
        only = class_names[int(summary.pixel_counts.argmax())]
        rank_zero_warn(f"{name}: all pixels are of one class, {quote(only)}: there is nothing to learn.")
        return
    shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
    verb = "occurs" if len(missing) == 1 else "occur"
    rank_zero_warn(
        f"{name}: {shown} never {verb}, so the network cannot learn {'it' if len(missing) == 1 else 'them'}."
    )
