"""Base of the data modules for domain adaptation: checks both domains, and builds the loaders."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_recall._lightning import LightningDataModule, rank_zero_info, rank_zero_warn
from lightning_recall.adaptation.batches import NO_LABEL
from lightning_recall.adaptation.data.images import without_labels
from lightning_recall.adaptation.data.pairs import (
    DomainPairs,
    EpochLength,
    PairedBatchSampler,
    PairedLoader,
    check_epoch_length,
)
from lightning_recall.adaptation.datamodules.domain_checks import (
    check_image,
    check_labels,
    check_same_classes,
    describe_classes,
)
from lightning_recall.adaptation.datamodules.splits import check_fraction, hold_out
from lightning_recall.checks import check_integer
from lightning_recall.data.batches import EvaluationItems, EvaluationSampler, rank_and_world_size

DOMAINS = ("source", "target")
SPLITS = {"train": "training", "val": "validation", "test": "test"}
"""key of `read` -> name in messages"""


class AdaptationDataModule(LightningDataModule, ABC):
    """Base of the data modules for domain adaptation: a subclass reads both domains; this class builds the loaders.

    A subclass sets `class_names` and `image_size` and overrides `read`, and `prepare_data` (called once per machine) if
    needed. The data sets are `DomainArrays`, `DomainFiles` or other map-style data sets of items (image (3, H, W)
    uint8, label) with the attribute `labels` (N,) and the method `select`.

    A training batch is {"source": (images (B, 3, H, W) uint8, labels (B,) int64), "target": images (B, 3, H, W) uint8}.
    Labels of target images are removed before training: no loader of training images holds them. Each domain is
    shuffled on its own; order and augmentation depend only on `seed` and the epoch, so a run can resume in the middle
    of an epoch.

    `val_dataloader` and `test_dataloader` return {"source": loader, "target": loader} of batches (images, labels);
    the label -1 means unknown. Each image is evaluated once, also on several processes.

    Validation uses source images that are held out from training (`val_fraction`), and the target's validation images.
    If `read` gives none for the target, these are its training images, with their labels for the accuracy only, so that
    the test images stay unseen. Choose checkpoints by `val/source/accuracy` or by a score that needs no labels. The
    test uses the test images of both domains; if `read` gives none for the source, its validation images.

    Args:
        batch_size: images of each domain per optimizer step, over all processes; a multiple of the number of processes.
            A domain with fewer images: see `PairedBatchSampler`.
        eval_batch_size: batch size in validation and test, per process; None: `batch_size`.
        num_workers: loader processes; 0 loads in the training process.
        epoch_length: "shorter": an epoch ends with the domain that has fewer images. "longer": it ends with the other
            one, and the shorter domain is repeated in a new order each time.
        val_fraction: fraction of the source's training images held out for validation, of each class the same fraction
            but at least one image; at least 0 and below 1; ignored if `read` gives validation images. 0: none, so that
            all images train and validation uses only the target.
        train_transform: changes each training image (3, H, W) uint8 of both domains, for example a transform of
            torchvision's v2; it may draw random numbers. None: no transform.
        seed: seed of order and augmentation, and of splits and draws.

    Attributes:
        class_names: K names.
        num_classes: K.
        image_size: height and width of the images in pixels.
        domains: domain ("source" or "target") -> split ("train", "val" or "test") -> data set, after setup.

    Raises:
        ValueError: for a value that is not an integer or is too small; at setup, if the domains have different classes
            or images of different shapes, a domain is empty, or a label is no class.
    """

    class_names: tuple[str, ...] = ()
    image_size: int = 32

    def __init__(
        self,
        batch_size: int = 100,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        epoch_length: EpochLength = "shorter",
        val_fraction: float = 0.1,
        train_transform: nn.Module | None = None,
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
        check_epoch_length(epoch_length)
        check_fraction("val_fraction", val_fraction)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.epoch_length = epoch_length
        self.val_fraction = val_fraction
        self.train_transform = train_transform
        self.seed = seed
        self.domains: dict[str, dict[str, Any]] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @abstractmethod
    def read(self) -> dict[str, dict[str, Any]]:
        """Returns domain -> split -> data set; "val" is optional, and so is "test" of the source.

        The domains are "source" and "target", the splits "train", "val" and "test".
        """

    def check_data(self) -> None:
        """Reads the lists of files, so that `lightning-recall` reports a wrong path before it builds the model.

        Does nothing if `prepare_data` may still have to create the files.
        """
        if type(self).prepare_data is LightningDataModule.prepare_data:
            self.read()

    def setup(self, stage: str = "fit") -> None:
        """Reads both domains, checks them, holds out validation images, and logs the sizes."""
        if self.domains:
            return
        domains = {domain: dict(self.read_domain(domain, parts)) for domain, parts in self.read().items()}
        check_same_classes(
            self.class_names,
            {
                f"{domain} {SPLITS[split]}": data.class_names
                for domain, parts in domains.items()
                for split, data in parts.items()
                if getattr(data, "class_names", None)
            },
        )
        source, target = domains["source"], domains["target"]
        for domain, least in (("source", 0), ("target", NO_LABEL)):
            for split, data in domains[domain].items():
                check_labels(f"{domain} {SPLITS[split]}", data.labels, self.class_names, least)
        if "val" not in source and self.val_fraction:
            source["train"], source["val"] = hold_out(source["train"], self.val_fraction, self.seed)
        source["train"] = source["train"].select(slice(None), training=True)
        target.setdefault("val", target["train"])
        target["train"] = without_labels(target["train"].select(slice(None), training=True))
        if "test" not in source and "val" in source:
            source["test"] = source["val"]
        for domain, parts in domains.items():
            for split, data in parts.items():
                check_image(f"{domain} {SPLITS[split]}", data, self.image_size)
        self.domains = domains
        self.log_sizes()

    def read_domain(self, domain: str, parts: dict[str, Any]) -> dict[str, Any]:
        """The data sets of a domain, those that are not None.

        Raises:
            ValueError: if one is empty, or there are no training images.
        """
        given = {split: data for split, data in parts.items() if data is not None}
        for split, name in SPLITS.items():
            if (split == "train" and split not in given) or (split in given and not len(given[split])):
                raise ValueError(f"The {domain} has no {name} images: check its folders and files.")
        return given

    def log_sizes(self) -> None:
        """Logs the images of each domain and split, and how many source images of each class train."""
        for domain in DOMAINS:
            parts = self.domains[domain]
            sizes = ", ".join(f"{name} {len(parts[split]):,}" for split, name in SPLITS.items() if split in parts)
            rank_zero_info(f"{domain} images: {sizes}")
        counts = describe_classes(self.domains["source"]["train"].labels, self.class_names)
        rank_zero_info(f"source training images of each class: {counts}")
        smaller = min(DOMAINS, key=lambda domain: len(self.domains[domain]["train"]))
        count = len(self.domains[smaller]["train"])
        if count < self.batch_size and self.epoch_length == "shorter":
            rank_zero_warn(
                f"The {smaller} has {count:,} training images, fewer than batch_size={self.batch_size}: an epoch is "
                f'one batch of {count:,}. Set a smaller batch_size, or epoch_length="longer".'
            )

    def train_dataloader(self) -> PairedLoader:
        """Batches of both domains; each process loads its slice of every batch."""
        source, target = (self.domains[domain]["train"] for domain in DOMAINS)
        reshuffle = not getattr(self.trainer, "overfit_batches", 0)
        sampler = PairedBatchSampler(len(source), len(target), self.batch_size, self.seed, reshuffle, self.epoch_length)
        pairs = DomainPairs(source, target, self.train_transform)
        return PairedLoader(pairs, sampler, num_workers=self.num_workers, pin_memory=torch.cuda.is_available())

    def val_dataloader(self) -> dict[str, DataLoader[Any]]:
        """Held-out source images, if there are any, and the validation images of the target."""
        return self._eval_loaders("val")

    def test_dataloader(self) -> dict[str, DataLoader[Any]]:
        """The test images of both domains."""
        if "test" not in self.domains["target"]:
            raise ValueError(f"{type(self).__name__} has no test images of the target: return them in read().")
        return self._eval_loaders("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test images of the target."""
        return self.test_dataloader()["target"]

    def _eval_loaders(self, split: str) -> dict[str, DataLoader[Any]]:
        return {
            domain: self._eval_loader(self.domains[domain][split])
            for domain in DOMAINS
            if split in self.domains[domain]
        }

    def _eval_loader(self, data: Any) -> DataLoader[Any]:
        rank, world_size = rank_and_world_size()
        items: Any = EvaluationItems(data, NO_LABEL) if world_size > 1 else data
        return DataLoader(
            items,
            batch_size=self.eval_batch_size,
            sampler=EvaluationSampler(items, rank, world_size) if world_size > 1 else None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # Without a generator, each pass would draw from the global generator, and a resumed run would differ from
            # an uninterrupted one.
            generator=torch.Generator(),
        )
