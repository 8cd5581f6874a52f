"""Draws the features of both domains in the plane, before and after training."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate

from lightning_recall._lightning import Callback, LightningModule, Trainer, rank_zero_warn
from lightning_recall.adaptation.batches import DOMAINS, evaluation_batch
from lightning_recall.adaptation.callbacks.undisturbed import undisturbed
from lightning_recall.adaptation.evaluation import domain_loaders
from lightning_recall.adaptation.images import unit_range
from lightning_recall.adaptation.plots import FeaturePoints, Projection, draw_feature_planes, project
from lightning_recall.adaptation.plots.projection import TITLES, resolve_projection
from lightning_recall.batch import type_and_shape
from lightning_recall.callbacks.class_names import find_class_names
from lightning_recall.callbacks.dataloaders import loaders_of
from lightning_recall.callbacks.output import end_progress_bar, output_path, save_picture, writes_files
from lightning_recall.checks import check_integer
from lightning_recall.data.messages import pluralize

BATCH_SIZE = 100  # if the dataloader has none


class FeaturePlane(Callback):
    """Draws the features of validation images in the plane: `feature_plane_val.png`.

    Images are coloured by domain in the left panel, and by class in the right one; target images without label are
    grey. The upper row shows the features before the first step, the lower row those after training, of the same
    images. A checkpoint holds the upper row, so that a resumed training draws it too. After `validate` and `test`
    alone, the picture has one row; the test's is `feature_plane_test.png`. Rank zero reads the images from the data
    sets and computes the features, in evaluation mode and without automatic mixed precision. Weights and random numbers
    of the training do not change. The picture is also sent to loggers that support images.

    The module must have a method `encode(images)`, as `AdaptationModule` has. The data sets must be map-style.

    Args:
        projection: "tsne" needs scikit-learn; "pca" are the first two principal components; "auto" is t-SNE if
            scikit-learn is installed.
        max_images: images of each domain.
        seed: seed of the choice of images, and of t-SNE.

    Raises:
        ValueError: for another projection or a number below 2; when training or evaluation starts: without validation
            dataloaders, or if their data sets are not map-style.
        ImportError: for "tsne" without scikit-learn.
    """

    def __init__(self, projection: Projection = "auto", max_images: int = 500, seed: int = 0) -> None:
        check_integer("max_images", max_images, 2)
        self.projection = resolve_projection(projection)
        self.max_images = max_images
        self.seed = seed
        self.before: FeaturePoints | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the features of an earlier training."""
        if stage == "fit":
            self.before = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes the features before the first step; a resumed training has them from its checkpoint."""
        if trainer.is_global_zero and self.before is None and writes_files(trainer):
            after = f"after {pluralize(trainer.current_epoch, 'epoch')}"
            title = "before training" if trainer.global_step == 0 else after
            self.before = self.points(pl_module, trainer.val_dataloaders, title)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the features before and after training."""
        self.draw(trainer, pl_module, "val", f"after {pluralize(trainer.current_epoch, 'epoch')}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the features, except during a training."""
        if trainer.state.fn == "validate":
            self.draw(trainer, pl_module, "val", "validation images")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the features."""
        self.draw(trainer, pl_module, "test", "test images")

    def draw(self, trainer: Trainer, pl_module: LightningModule, split: str, title: str) -> None:
        """Draws one row, below that before training if there is a training."""
        if not writes_files(trainer):
            return
        path = output_path(trainer, f"feature_plane_{split}.png")  # must be called on all processes
        if not trainer.is_global_zero:
            return
        loaders = loaders_of(trainer)
        before = [self.before] if trainer.state.fn == "fit" and self.before is not None else []
        rows = [*before, self.points(pl_module, loaders, title)]
        largest = max(int(row.labels.max(initial=0)) for row in rows)
        num_classes = int(getattr(pl_module, "num_classes", largest + 1))
        names = find_class_names((pl_module, getattr(trainer, "datamodule", None)), num_classes)
        end_progress_bar(trainer)
        figure = draw_feature_planes(rows, names, TITLES[self.projection])
        save_picture(trainer, figure, path, "Features in the plane")

    def points(self, module: LightningModule, loaders: Any, title: str) -> FeaturePoints:
        """The chosen images of all domains in the plane."""
        if loaders is None:
            raise ValueError(
                "FeaturePlane needs validation dataloaders before the first step: define val_dataloader and set "
                "limit_val_batches above 0 and check_val_every_n_epoch=1 or num_sanity_val_steps above 0, or remove "
                "FeaturePlane."
            )
        features, labels, is_source = [], [], []
        with undisturbed(module):
            for domain, loader in domain_loaders(loaders).items():
                part, part_labels = features_of(module, loader, self.max_images, (self.seed, DOMAINS.index(domain)))
                features.append(part)
                labels.append(part_labels)
                is_source.append(torch.full(part_labels.shape, domain == "source"))
        points = project(without_infinite(torch.cat(features)), self.projection, self.seed)
        return FeaturePoints(title, points, torch.cat(is_source).numpy(), torch.cat(labels).numpy())

    def state_dict(self) -> dict[str, Any]:
        """The features before training."""
        if self.before is None:
            return {"before": None}
        title, *arrays = self.before
        return {"before": (title, *(torch.from_numpy(array) for array in arrays))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the features before training from a checkpoint."""
        if state_dict["before"] is not None:
            title, *tensors = state_dict["before"]
            self.before = FeaturePoints(title, *(tensor.numpy() for tensor in tensors))


def features_of(module: LightningModule, loader: Any, max_images: int, seed: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Features (n, D) and labels (n,) of some images of a data set, on the CPU.

    Args:
        module: its `encode` computes features (B, D) of images (B, 3, H, W) between 0 and 1.
        loader: a dataloader with a map-style data set; `collate_fn` and `batch_size` are used.
        max_images: n, unless the data set is smaller.
        seed: seed of the choice.

    Raises:
        ValueError: if the data set is not map-style.
    """
    dataset: Any = getattr(loader, "dataset", None)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"FeaturePlane needs dataloaders with map-style data sets, got {type_and_shape(loader)}: use a data set "
            "with __getitem__ and __len__, or remove FeaturePlane."
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:max_images]).tolist()
    size = getattr(loader, "batch_size", None)
    collate = getattr(loader, "collate_fn", default_collate) if size else default_collate
    features, labels = [], []
    for batch in DataLoader(Subset(dataset, chosen), batch_size=size or BATCH_SIZE, collate_fn=collate):
        images, batch_labels = evaluation_batch(batch)
        images = unit_range(images.to(module.device), module.dtype).to(module.dtype)
        encoded: Tensor = module.encode(images)  # type: ignore[operator]  # nn.Module attributes are typed Tensor or Module
        features.append(encoded.float().cpu())
        labels.append(batch_labels.long().cpu())
    return torch.cat(features), torch.cat(labels)


def without_infinite(features: Tensor) -> Tensor:
    """Features (N, D), with zeros for NaN and infinity, which a diverged training has."""
    if not features.isfinite().all():
        rank_zero_warn("Some features are not finite: FeaturePlane draws them as 0. Use a lower learning rate.")
    return features.nan_to_num(0.0, 0.0, 0.0)
