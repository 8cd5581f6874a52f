"""LightningModule for semantic segmentation with any network and any loss."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from lightning_recall._lightning import Callback, attached_trainer, callbacks_of, rank_zero_warn
from lightning_recall.callbacks.class_names import check_same_names, checked_names, key_names
from lightning_recall.callbacks.dataloaders import check_loaders, loaders_of, named_loaders
from lightning_recall.callbacks.scored_module import ScoredModule
from lightning_recall.callbacks.validation_history import ValidationHistory
from lightning_recall.checks import check_integer, check_same
from lightning_recall.data.channel_statistics import channel_values, check_normalization
from lightning_recall.optimization.automatic_optimization import AutomaticOptimization
from lightning_recall.optimization.monitors import check_monitors
from lightning_recall.optimization.parameter_groups import ParameterGroup
from lightning_recall.segmentation.batches import check_scalar, checked_batch, has_valid_pixel
from lightning_recall.segmentation.callbacks.class_table import ClassTable
from lightning_recall.segmentation.data.masks import IGNORED_PIXEL
from lightning_recall.segmentation.evaluation import Evaluation, logged_metrics
from lightning_recall.segmentation.fine_tuning import segmentation_groups
from lightning_recall.segmentation.models.feature_pyramid import IMAGENET_MEAN, IMAGENET_STD
from lightning_recall.segmentation.models.outputs import logits_of, output_of
from lightning_recall.segmentation.scores import MEANS, flat_scores
from lightning_recall.tensors import at_least_float32

CHECKPOINT_KEY = "segmentation"
SAME = ("num_classes", "ignore_index")
"""attributes that the module shares with its loss and its data module"""


class SegmentationModule(ScoredModule, AutomaticOptimization):
    """Trains a network that predicts the class of each pixel, and scores it.

    A batch is a pair (images (B, 3, H, W), masks (B, H, W) integers). Images of dtype uint8 are divided by 255 and
    normalised by `mean` and `std` on the device; floating-point images are passed to the network unchanged.

    Logs `train/loss`, and for validation and test `val/loss`, `val/miou`, `val/mean_accuracy`, `val/mean_precision`,
    `val/pixel_accuracy`, and for each class `val/iou/NAME`, `val/accuracy/NAME`, `val/precision/NAME`: see
    `SegmentationScores`. ModelCheckpoint can monitor each of them. With several dataloaders each has its own keys:
    `val/0/miou`, or `val/NAME/miou` if they are a dict. Each image counts once, also with several processes. Spaces and
    slashes in names of classes are replaced by "_" in keys.

    A sanity check of all validation batches (the Trainer's `num_sanity_val_steps: -1`) scores the network before
    training, as the first row of the table that `RunSummary` prints after training.

    Clipping, accumulation, precision and weight averaging are settings of the Trainer. A batch whose pixels are all
    ignored has loss 0. With several processes the loss is that of each process's images, averaged over processes;
    losses of this package equal the loss of the whole batch.

    Args:
        network: images (B, 3, H, W) -> logits (B, C, h, w), which are enlarged to H x W; or a dict with logits under
            "out", and those of an auxiliary head under "aux", as torchvision's networks return.
        loss: (logits (B, C, H, W) in at least float32, target (B, H, W) int64) -> scalar.
        num_classes: C, at least 2.
        ignore_index: label of pixels without class; None: there are none.
        class_names: name of each class; None: those of the data module, or else numbers.
        mean: mean of each channel of images in [0, 1]; None: `network.mean` if it exists, otherwise ImageNet's.
        std: the same for the standard deviation.
        aux_weight: weight of the loss of the auxiliary head, for networks with an `aux_classifier`; 0 ignores it. The
            default 0.4 is that of PSPNet (arXiv 1612.01105).
        head_lr: learning rate of all parameters outside the network's `backbone` or `encoder`; None: the same rate.
        kwargs: passed to `AutomaticOptimization`: optimizer, lr_scheduler, lr_interval, lr_frequency.

    Parameters with at most one dimension (norms and biases) have no weight decay.

    Raises:
        ValueError: for settings that do not fit each other, the loss, the network, the data module or the batch: number
            of classes, ignore_index, sizes, dtypes, and labels out of range.

    >>> from torch.nn import Conv2d, CrossEntropyLoss
    >>> module = SegmentationModule(Conv2d(3, 5, 1), CrossEntropyLoss(ignore_index=255), num_classes=5)
    >>> module(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([2, 5, 8, 8])
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        num_classes: int,
        ignore_index: int | None = IGNORED_PIXEL,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        aux_weight: float = 0.4,
        head_lr: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_integer("num_classes", num_classes, 2)
        if not aux_weight >= 0:
            raise ValueError(f"aux_weight must be at least 0, got {aux_weight}.")
        self.network = network
        self.loss = loss
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = checked_names(class_names, num_classes) or tuple(map(str, range(num_classes)))
        self.mean = channel_values(mean, getattr(network, "mean", None), IMAGENET_MEAN)
        self.std = channel_values(std, getattr(network, "std", None), IMAGENET_STD)
        check_normalization(self.mean, self.std)
        given = {"class_names": class_names, "mean": mean, "std": std}
        self.from_checkpoint = [name for name, value in given.items() if value is None]
        self.aux_weight = aux_weight
        has_aux = aux_weight > 0 and getattr(network, "aux_classifier", None) is not None
        self.aux_loss = deepcopy(loss) if has_aux else None  # a copy: a loss may keep averages of its own logits
        self.head_lr = head_lr
        self.class_scores: dict[str, dict[str, Tensor]] = {}
        self.history = ValidationHistory("Segmentation of the val split, in %", MEANS)
        self.evaluations: list[Evaluation] = []
        check_same(self, "loss", loss, SAME)
        check_same(self, "network", network, ("num_classes",))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C, H, W) of images (B, 3, H, W)."""
        return self.logits_and_aux(images)[0]

    def logits_and_aux(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, C, H, W), in at least float32, and those of the auxiliary head, if there is one."""
        if images.dtype == torch.uint8:
            images = tv.normalize(images.to(self.dtype) / 255, list(self.mean), list(self.std))
        output, size = output_of(self.network, images), (images.shape[-2], images.shape[-1])
        logits = at_least_float32(logits_of(output, size))
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"The network returns logits of {logits.shape[1]} classes, but num_classes is {self.num_classes}: set "
                "both to the same number."
            )
        if self.aux_loss is None or not isinstance(output, Mapping) or "aux" not in output:
            return logits, None
        return logits, at_least_float32(logits_of(output["aux"], size))

    def batch_loss(self, loss: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
        """A loss of logits (B, C, H, W) and target (B, H, W); 0 if all pixels are ignored."""
        has_pixels = has_valid_pixel(target, self.num_classes, self.ignore_index)
        with torch.autocast(logits.device.type, enabled=False):
            value: Tensor = loss(logits, target)  # also without pixels: losses may communicate with other processes
        check_scalar(value, type(loss).__name__)
        return value if has_pixels else logits.sum() * 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        images, target = checked_batch(batch)
        logits, aux = self.logits_and_aux(images)
        loss = self.batch_loss(self.loss, logits, target)
        if aux is not None and self.aux_loss is not None:
            loss = loss + self.aux_weight * self.batch_loss(self.aux_loss, aux, target)
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Scores a batch; returns {"predictions": classes (B, H, W)} for the callbacks."""
        images, target = checked_batch(batch)
        logits = self(images)
        predictions = classes_of(logits)
        evaluation = self.evaluations[dataloader_idx]
        count = evaluation.images.num_counted(len(target))
        loss = self.batch_loss(self.loss, logits[:count], target[:count]) if count else logits.new_zeros(())
        evaluation.update(predictions[:count], target[:count], loss)
        return {"predictions": predictions}

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Same as `validation_step`."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Classes (B, H, W), uint8 if there are at most 256, of images or of a batch (images, masks)."""
        return classes_of(self(batch if isinstance(batch, Tensor) else batch[0]))

    def on_validation_epoch_start(self) -> None:
        """Starts new counts for each dataloader."""
        check_loaders(loaders_of(self.trainer))
        loaders = named_loaders(loaders_of(self.trainer)).values()
        self.evaluations = [Evaluation(loader, self.num_classes, self.ignore_index, self.device) for loader in loaders]

    def on_test_epoch_start(self) -> None:
        """Starts new counts for each dataloader."""
        self.on_validation_epoch_start()

    def forget_results(self) -> None:
        """Removes `class_scores`."""
        self.class_scores = {}

    def computed_scores(self, split: str) -> dict[str, Tensor]:
        """Computes all scores over all processes, key -> score, and sets `class_scores`."""
        names = [*named_loaders(loaders_of(self.trainer))]
        parts = [str(name) if len(names) > 1 else "" for name in names]
        scores: dict[str, Tensor] = {}
        for part, evaluation in zip(parts, self.evaluations, strict=True):
            self.class_scores[part] = result = evaluation.scores.compute()
            values = {"loss": evaluation.loss.compute(), **flat_scores(result, key_names(self.class_names))}
            scores |= {"/".join(filter(None, [split, part, name])): value for name, value in values.items()}
            if result["pixel_accuracy"].isnan():
                rank_zero_warn(f"The {split} split has no pixel with a class, so its scores are NaN: check its masks.")
        self.evaluations = []
        return scores

    def setup(self, stage: str) -> None:
        """Checks the data module, and takes its names of the classes."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        check_same(self, "data module", data, SAME)
        names = checked_names(getattr(data, "class_names", None), self.num_classes)
        check_same_names(self.class_names, names, are_chosen="class_names" not in self.from_checkpoint)
        if names is not None and "class_names" in self.from_checkpoint:
            self.class_names = names
        if stage == "fit":
            self.history = ValidationHistory("Segmentation of the val split, in %", MEANS)

    def on_train_start(self) -> None:
        """Checks monitors and schedules, and restores the RNG state when resuming."""
        super().on_train_start()
        check_monitors(self.trainer, logged_metrics(self.trainer, key_names(self.class_names)))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Groups with and without weight decay, of the backbone and of everything else; see `head_lr`."""
        return segmentation_groups(self, self.network, self.head_lr)

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Adds a `ClassTable`, unless the Trainer has one."""
        others = super().configure_callbacks()
        has_table = any(isinstance(callback, ClassTable) for callback in callbacks_of(self.trainer))
        tables = [] if has_table else [ClassTable()]
        return [*(others if isinstance(others, Sequence) else [others]), *tables]

    def training_summary(self, batch: Any) -> dict[str, str]:
        """Rows for the table that `RunSummary` prints before training."""
        images, _ = checked_batch(batch)
        ignored = "" if self.ignore_index is None else f", pixels with {self.ignore_index} are ignored"
        return {
            "architecture": type(self.network).__name__,
            "loss": type(self.loss).__name__,
            "classes": f"{self.num_classes}{ignored}",
            "image size": f"{images.shape[-2]} x {images.shape[-1]}",
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves names, normalisation and the validation scores."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = {
            "class_names": self.class_names,
            "mean": self.mean,
            "std": self.std,
            "history": self.history.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the validation scores, and names and normalisation unless they are arguments of the module."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(CHECKPOINT_KEY)  # None in a checkpoint of another module
        if saved is not None:
            data = getattr(attached_trainer(self), "datamodule", None)
            names = checked_names(getattr(data, "class_names", None), self.num_classes)
            check_same_names(saved["class_names"], names, are_chosen="class_names" not in self.from_checkpoint)
            self.history.load_state_dict(saved["history"])
            for name in self.from_checkpoint:
                setattr(self, name, tuple(saved[name]))


def classes_of(logits: Tensor) -> Tensor:
    """The class with the highest logit: (B, C, H, W) -> (B, H, W), uint8 if there are at most 256 classes."""
    classes = logits.argmax(1)
    return classes.to(torch.uint8) if logits.shape[1] <= 256 else classes
