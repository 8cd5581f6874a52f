"""Trains an embedding head on features that a frozen backbone computes once."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_recall._lightning import rank_zero_info
from lightning_recall.checks import check_integer
from lightning_recall.data import ChunkLoader
from lightning_recall.data.features import (
    FeatureDataset,
    contents_key,
    load_features,
    replace_unreadable,
    save_features,
    transform_key,
    weights_key,
)
from lightning_recall.data.tables import user_path
from lightning_recall.datamodules.base import RetrievalDataModule
from lightning_recall.datamodules.embedding import embed_images, features_function


class CachedFeaturesDataModule(RetrievalDataModule):
    """Embeds the images of another data module once, and trains the head of the embedder on the features.

    The backbone of the module must stay frozen (`unfreeze_epoch: null`). Before training, it embeds the training and
    the validation images with the module's `features`, on the device of the training; each process embeds its share.
    The features stay in memory. Training then computes only the head, with the same loss, sampler, batch size, queries
    and gallery, and with `views=1` gives the same weights as training on the images without augmentation. `validate`,
    `test` and `predict` use the images: they show that the head and its backbone give the same scores.

    Settings such as `batch_size` are those of `data`.

    Args:
        data: the data module of the images.
        views: 1: each training image is embedded once, with the transform of the evaluation. Otherwise it is embedded
            this many times with the transform of the training, and each epoch draws one of these at random.
        folder: keeps the features in files `train.safetensors` and `val.safetensors`; ~ is the home folder. They are
            used again by a training with the same weights, transforms and images, and computed again otherwise. None:
            they are only kept in memory.
        chunk_size: features that the loader yields at a time; the command line links it to the model's `chunk_size`.
            None: the whole batch of this process.

    Raises:
        ValueError: for `views` below 1, or `data` that holds features; at setup, if the backbone of the module is
            trained, or the module has no method `features`.
    """

    def __init__(
        self, data: RetrievalDataModule, views: int = 1, folder: str | None = None, chunk_size: int | None = None
    ) -> None:
        if isinstance(data, CachedFeaturesDataModule):
            raise ValueError("data must be a data module of images, not another CachedFeaturesDataModule.")
        check_integer("views", views, 1)
        super().__init__(
            batch_size=data.batch_size,
            samples_per_class=data.samples_per_class,
            chunk_size=chunk_size or data.batch_size,
            eval_batch_size=data.eval_batch_size,
            val_classes=data.val_classes,
            seed=data.seed,
            sampler=data.sampler,
        )
        self.data = data
        self.views = views
        self.folder = None if folder is None else user_path(folder)
        self.cached: dict[str, tuple[Any, str, FeatureDataset]] = {}  # name -> images, weights, features

    def check_data(self) -> None:
        """See `RetrievalDataModule.check_data`."""
        self.data.check_data()

    def prepare_data(self) -> None:
        """Prepares the images."""
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Reads the data sets of the images; checks that the backbone is frozen."""
        module = getattr(self.trainer, "lightning_module", None)
        if stage == "fit" and module is not None:
            check_frozen(module)
            features_function(module)
        self.data.trainer = self.trainer
        self.data.setup(stage)
        if stage == "fit" and self.data.train_data is not None:
            self.data.train_dataloader()  # raises errors of the sampler before the images are embedded
        self.train_data, self.val_data, self.test_data = self.data.train_data, self.data.val_data, self.data.test_data
        if hasattr(self.data, "transforms"):
            self.transforms = self.data.transforms

    def train_dataloader(self) -> ChunkLoader:
        """Class-balanced batches of features, as lists of chunks; the first call embeds the images."""
        if self.data.train_data is not None:
            self.train_data = self.features_of("train", self.data.train_data, self.views)
        return super().train_dataloader()

    def val_dataloader(self) -> Any:
        """The held-out classes: features in `fit`, images in `validate`."""
        if self.trainer is None or self.trainer.state.fn != "fit" or self.data.val_data is None:
            return self.data.val_dataloader()
        self.val_data = self.features_of("val", self.data.val_data, 1)
        return super().val_dataloader()

    def test_dataloader(self) -> Any:
        """The test images."""
        return self.data.test_dataloader()

    def predict_dataloader(self) -> Any:
        """The images that `data` predicts."""
        return self.data.predict_dataloader()

    def teardown(self, stage: str) -> None:
        """Warns how many files this process could not read, and resets the count."""
        super().teardown(stage)
        self.data.teardown(stage)

    def features_of(self, name: str, images: Any, views: int) -> FeatureDataset:
        """The features of a data set: those in memory, those in `folder`, or new ones.

        Raises:
            ValueError: if there is no Trainer.
        """
        if self.trainer is None or self.trainer.lightning_module is None:
            raise ValueError(
                "CachedFeaturesDataModule embeds images with the module in training: pass it to Trainer.fit."
            )
        module = self.trainer.lightning_module
        weights = f"{weights_key(getattr(module, 'embedder', module))} {self.trainer.precision}"
        known_images, known_weights, known = self.cached.get(name, (None, "", None))
        if known is not None and known_images is images and known_weights == weights:
            return known
        # views of the same images differ, so more than one needs the transform of the training
        data = images.select(slice(None), training=False) if name == "train" and views == 1 else images
        keys = {}
        if self.folder is not None:
            if views > 1:
                check_no_device_augmentation(self.data)
            transforms = f"{transform_key(data)} views={views} seed={self.seed if views > 1 else 0}"
            keys = {"weights": weights, "transforms": transforms, "images": contents_key(data)}
        features, readable = self.load(name, keys) or self.embed(name, data, views, keys)
        if name == "train":
            replace_unreadable(features, readable, data.labels)
            readable = torch.ones_like(readable)
        dataset = FeatureDataset(data, features, readable)
        self.cached[name] = images, weights, dataset
        return dataset

    def load(self, name: str, keys: dict[str, str]) -> tuple[Tensor, Tensor] | None:
        """Features from `folder`, if every process finds the right ones there."""
        if self.folder is None:
            return None
        assert self.trainer is not None
        loaded, reason = load_features(self.folder / f"{name}.safetensors", keys)
        if not self.trainer.strategy.reduce_boolean_decision(loaded is not None, all=True):
            if reason:
                rank_zero_info(reason)
            return None
        assert loaded is not None
        rank_zero_info(f"{name}: {len(loaded['features']):,} features from {self.folder}.")
        return loaded["features"], loaded["readable"]

    def embed(self, name: str, data: Any, views: int, keys: dict[str, str]) -> tuple[Tensor, Tensor]:
        """New features, which are kept in `folder`."""
        assert self.trainer is not None
        augment = partial(augment_on_device, self.data) if name == "train" and views > 1 else None
        features, readable = embed_images(
            data, self.trainer, self.eval_batch_size, self.data.num_workers, views, self.seed, augment, name
        )
        if self.folder is not None and self.trainer.is_global_zero:
            save_features(self.folder / f"{name}.safetensors", features, readable, keys)
        return features, readable


def augment_on_device(data: RetrievalDataModule, images: Tensor, labels: Tensor) -> Tensor:
    """Images of a training batch after the hooks with which a data module augments on the device."""
    batch: Any = data.on_after_batch_transfer([(images, labels)], 0)
    augmented: Tensor = batch[0][0]
    return augmented


def check_no_device_augmentation(data: RetrievalDataModule) -> None:
    """Raises ValueError if a data module augments on the device, with code that a file of features cannot name."""
    if type(data).on_after_batch_transfer is not RetrievalDataModule.on_after_batch_transfer:
        raise ValueError(
            f"{type(data).__name__} augments in on_after_batch_transfer, whose changes would not be noticed: omit "
            "folder, or set views to 1."
        )


def check_frozen(module: Any) -> None:
    """Raises ValueError if the backbone of a module is trained."""
    if hasattr(module, "unfreeze_epoch"):
        frozen = module.unfreeze_epoch is None
    else:
        backbone = getattr(module, "backbone", module)
        frozen = not any(parameter.requires_grad for parameter in backbone.parameters())
    if not frozen:
        raise ValueError(
            "CachedFeaturesDataModule embeds the images once, so the backbone must stay frozen: set unfreeze_epoch to "
            "null (--model.unfreeze_epoch null), or train on the images."
        )
