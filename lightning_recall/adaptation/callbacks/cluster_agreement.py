"""A validator that needs no labels: how well clusters of the target's features agree with the predicted classes."""

from typing import Any

import torch
from torch import Tensor

from lightning_recall._lightning import Callback, LightningModule, Trainer
from lightning_recall.adaptation.evaluation import domain_loaders
from lightning_recall.batch import type_and_shape
from lightning_recall.callbacks.dataloaders import loader_at, loaders_of
from lightning_recall.callbacks.own_images import OwnImages
from lightning_recall.gather import gather_rows
from lightning_recall.tensors import at_least_float32

KEY = "target/class_ami"
Part = tuple[Tensor, Tensor]
"""features (b, D) and predicted classes (b,)"""


class ClusterAgreement(Callback):
    """Logs `val/target/class_ami` and `test/target/class_ami`, by which a checkpoint can be chosen; higher is better.

    The score is the adjusted mutual information between the predicted classes of the target images and k-means clusters
    of their features, with as many clusters as classes: 1 if they are the same partition, around 0 if they are
    unrelated. No label is used. It is ClassAMI of pytorch-adapt, with the settings of its ClassClusterValidator; it
    ranks highest among the validators in arXiv 2208.07360. k-means starts from points drawn with `seed`, so the score
    does not equal that of another implementation to the digit.

    Works with every LightningModule whose `validation_step` and `test_step` return {"predictions": (B,), "features":
    (B, D)}, as `AdaptationModule` does, and whose dataloaders are {"source": ..., "target": ...} or a single loader of
    target images. All features are kept until the end of the evaluation. Each image counts once, also with several
    processes. Needs scikit-learn: `pip install lightning-recall[nmi]`.

    Args:
        num_clusters: number of clusters; None: the module's `num_classes`.
        seed: seed of k-means.

    Raises:
        ImportError: without scikit-learn.
        ValueError: for outputs of another form, and for fewer images than clusters.
    """

    scores = ("class_ami",)

    def __init__(self, num_clusters: int | None = None, seed: int = 0) -> None:
        try:
            import sklearn.cluster  # noqa: F401  # optional dependency: fail at construction, not after the evaluation
        except ImportError as error:
            raise ImportError("ClusterAgreement needs scikit-learn: pip install lightning-recall[nmi]") from error
        self.num_clusters = num_clusters
        self.seed = seed
        self.parts: list[Part] = []
        self.images: OwnImages | None = None

    def logged_keys(self, trainer: Trainer) -> list[str]:
        """The key that validation logs, for the check of monitors."""
        return [f"val/{KEY}"]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a new evaluation."""
        self.parts, self.images = [], None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a new evaluation."""
        self.parts, self.images = [], None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps features and predictions of target images."""
        domain = list(domain_loaders(loaders_of(trainer)))[dataloader_idx]
        if trainer.sanity_checking or domain != "target":
            return
        if not isinstance(outputs, dict) or not {"predictions", "features"} <= set(outputs):
            raise ValueError(
                'ClusterAgreement needs a validation_step and test_step that return {"predictions": (B,), "features": '
                f"(B, D)}}, got {type_and_shape(outputs)}."
            )
        self.images = self.images or OwnImages(loader_at(loaders_of(trainer), dataloader_idx))
        count = self.images.num_counted(len(outputs["predictions"]))
        self.parts.append((at_least_float32(outputs["features"][:count]).detach(), outputs["predictions"][:count]))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Same as `on_validation_batch_end`."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the score of a validation."""
        self.log_score(pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the score of a test."""
        self.log_score(pl_module, "test")

    def log_score(self, pl_module: LightningModule, split: str) -> None:
        """Logs the score; nothing without target images."""
        if not self.parts:
            return
        features, classes = (gather_rows(torch.cat(part)) for part in zip(*self.parts, strict=True))
        self.parts = []
        num_clusters = self.num_clusters or int(pl_module.num_classes)  # type: ignore[arg-type]  # nn.Module attributes are typed Tensor or Module
        pl_module.log(f"{split}/{KEY}", class_ami(features, classes, num_clusters, self.seed), sync_dist=True)


def class_ami(features: Tensor, classes: Tensor, num_clusters: int, seed: int = 0) -> float:
    """Adjusted mutual information between predicted classes (N,) and k-means clusters of features (N, D).

    Raises:
        ValueError: for fewer images than clusters, and features that are not finite.

    >>> class_ami(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([1, 1, 0, 0]), num_clusters=2)
    1.0
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score

    if len(features) < num_clusters:
        raise ValueError(f"ClusterAgreement needs at least {num_clusters} target images, got {len(features)}.")
    if not features.isfinite().all():
        raise ValueError("ClusterAgreement needs finite features: the training has diverged.")
    clusters = KMeans(num_clusters, n_init=1, random_state=seed).fit_predict(features.cpu().numpy())
    return float(adjusted_mutual_info_score(classes.cpu().numpy(), clusters))
