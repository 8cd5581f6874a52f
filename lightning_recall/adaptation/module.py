"""Base of the modules for domain adaptation: an encoder and a classifier, and their evaluation on both domains."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recall._lightning import Callback, attached_trainer, callbacks_of, rank_zero_warn
from lightning_recall.adaptation.batches import DomainBatch, domain_batch, evaluation_batch, images_of
from lightning_recall.adaptation.callbacks.domain_table import DomainTable
from lightning_recall.adaptation.evaluation import (
    DomainHistory,
    Evaluation,
    check_target_labels,
    domain_loaders,
    logged_metrics,
    scores_by_key,
    warn_of_target_labels,
)
from lightning_recall.adaptation.images import check_images, check_range, normalization, normalized, unit_range
from lightning_recall.adaptation.network_checks import check_returns_logits, classified, encoded
from lightning_recall.adaptation.parameter_groups import adaptation_groups
from lightning_recall.adaptation.training_summary import training_summary
from lightning_recall.callbacks.class_names import check_same_names, checked_names
from lightning_recall.callbacks.dataloaders import loaders_of
from lightning_recall.callbacks.scored_module import ScoredModule
from lightning_recall.checks import check_integer, check_same
from lightning_recall.optimization import ManualOptimization, weight_averaging
from lightning_recall.optimization.distributed_random_states import get_random_states, set_random_states
from lightning_recall.optimization.monitors import check_monitors
from lightning_recall.optimization.parameter_groups import ParameterGroup

CHECKPOINT_KEY = "adaptation"


class AdaptationModule(ScoredModule, ManualOptimization):
    """Base of the methods: an encoder and a classifier, with their evaluation on both domains.

    A subclass defines `training_step`, which calls `checked`, `encode`, `classify`, `optimize` and `logged`.

    A training batch is {"source": (images, labels), "target": images}. The target may be a pair too, as in the batches
    of Lightning's `CombinedLoader({"source": ..., "target": ...}, mode="min_size")`: its labels are dropped unread.
    Images (B, 3, H, W) are uint8, or floating point between 0 and 1; `mean` and `std` are applied on the device.

    Validation and test take the dataloaders {"source": ..., "target": ...}, one of the two, or a single dataloader of
    target images. Their batches are pairs (images, labels), or images without labels; label -1 means no label. Each
    image counts once, also with several processes. Validation logs `val/source/loss`; the accuracies
    `val/source/accuracy`, `val/source/mean_class_accuracy`, `val/target/accuracy`, `val/target/mean_class_accuracy`;
    and the validators `val/target/information_maximization`, `val/target/bnm`, `val/target/negative_entropy`, which
    need no labels: see `DomainScores`. The test logs the same keys with `test/`. Without target labels there are no
    target accuracies. ModelCheckpoint and EarlyStopping can monitor each of them; a warning says when labels of the
    target choose a model.

    A sanity check of all validation batches (the Trainer's `num_sanity_val_steps: -1`) scores the networks before
    training, as the first row of the table that `RunSummary` prints after training.

    Resuming reproduces an uninterrupted run, also mid-epoch if the loader is stateful like `ChunkLoader`; a plain
    DataLoader restarts the epoch.

    Args:
        encoder: images (B, 3, H, W) -> features (B, D).
        classifier: features (B, D) -> logits (B, K).
        num_classes: K, at least 2.
        class_names: name of each class; None: those of the data module, or else numbers.
        mean: mean of each channel of images in [0, 1]; None: `encoder.mean` if it exists, otherwise no normalisation.
        std: the same for the standard deviation.
        seed: of the random numbers that a method draws in training, at least 0.
        head_lr: learning rate of all parameters outside `encoder.backbone`; None: the same rate for all.
        kwargs: passed to `ManualOptimization`: optimizer, lr_scheduler, ...

    Attributes:
        class_names: name of each class.
        confusions: domain -> confusion matrix (K, K) of the last evaluation, rows by class and columns by prediction;
            domains without labels are missing.
        history: `ValidationHistory` of the training.

    Raises:
        ValueError: for settings out of range or that do not fit the networks, the data module or the batches: number of
            classes, channels, sizes, dtypes, and labels out of range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        classifier: nn.Module,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        head_lr: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_integer("num_classes", num_classes, 2)
        check_integer("seed", seed, 0)
        self.encoder = encoder
        self.classifier = classifier
        self.num_classes = num_classes
        self.class_names = checked_names(class_names, num_classes) or tuple(map(str, range(num_classes)))
        self.mean, self.std = normalization(mean, std, encoder)
        given = {"class_names": class_names, "mean": mean, "std": std}
        self.from_checkpoint = [name for name, value in given.items() if value is None]
        self.seed = seed
        self.head_lr = head_lr
        self.history = DomainHistory()
        self.confusions: dict[str, Tensor] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.range_checked = False
        self.resumed_states: list[dict[str, Any]] | None = None
        check_same(self, "classifier", classifier, ("num_classes",))
        check_returns_logits(classifier, "classifier", (nn.Softmax, nn.Sigmoid))

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W) between 0 and 1."""
        return encoded(self.encoder, normalized(images, self.mean, self.std))

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, D)."""
        return classified(self.classifier, features, self.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W), uint8 or between 0 and 1."""
        return self.classify(self.encode(unit_range(images, self.dtype)))

    def checked(self, batch: Any, equal_sizes: bool = False) -> DomainBatch:
        """The parts of a training batch, with images between 0 and 1; see `domain_batch`."""
        source, labels, target = domain_batch(batch, self.num_classes, equal_sizes)
        for images in (source, target):
            if not self.range_checked:
                check_range(images)
        self.range_checked = True
        return DomainBatch(unit_range(source, self.dtype), labels, unit_range(target, self.dtype))

    def logged(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logs the losses of a step as train/NAME; returns {"loss": ...} for the Trainer."""
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "loss", sync_dist=True)
        return {"loss": losses["loss"].detach()}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Scores a batch; returns {"predictions": classes (B,), "features": (B, D)} for the callbacks."""
        images, labels = evaluation_batch(batch)
        if batch_idx == 0:
            check_range(images)
        features = self.encode(unit_range(images, self.dtype))
        logits = self.classify(features)
        list(self.evaluations.values())[dataloader_idx].update(logits, labels)
        return {"predictions": logits.argmax(1), "features": features}

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Same as `validation_step`."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Classes (B,) of images, or of the images of a batch (images, labels)."""
        images = images_of(batch)
        check_images(images, "predict")
        if batch_idx == 0:
            check_range(images)
        return self(images).argmax(1)  # type: ignore[no-any-return]  # nn.Module calls are untyped

    def on_validation_epoch_start(self) -> None:
        """Starts new counts for each domain."""
        loaders = domain_loaders(loaders_of(self.trainer))
        self.evaluations = {
            domain: Evaluation(loader, self.num_classes, self.device) for domain, loader in loaders.items()
        }

    def on_test_epoch_start(self) -> None:
        """Starts new counts for each domain."""
        self.on_validation_epoch_start()

    def forget_results(self) -> None:
        """Removes `confusions`."""
        self.confusions = {}

    def check_scores(self, scores: dict[str, float]) -> None:
        """Raises ValueError if a monitored score of the target needs labels that are missing."""
        check_target_labels(self.trainer, scores)

    def computed_scores(self, split: str) -> dict[str, Tensor]:
        """Computes all scores over all processes, key -> score, and sets `confusions`."""
        results = {domain: evaluation.result(split, domain) for domain, evaluation in self.evaluations.items()}
        self.confusions = {domain: result["confusion"].cpu() for domain, result in results.items() if "loss" in result}
        self.evaluations = {}
        if "source" in results and "source" not in self.confusions:
            rank_zero_warn(f"The source images of the {split} split have no labels, so they have no scores.")
        return scores_by_key(split, results)

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group, or those of the backbone and of everything else; see `head_lr`."""
        return adaptation_groups(self, self.head_lr)

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Puts WeightAveraging first; adds a `DomainTable`, unless the Trainer has one."""
        weight_averaging.put_weight_averaging_first(self.trainer)
        others = super().configure_callbacks()
        has_table = any(isinstance(callback, DomainTable) for callback in callbacks_of(self.trainer))
        tables = [] if has_table else [DomainTable()]
        return [*(others if isinstance(others, Sequence) else [others]), *tables]

    def setup(self, stage: str) -> None:
        """Checks the data module, takes its names of the classes, and resets what a checkpoint has left."""
        super().setup(stage)
        self.resumed_states, self.range_checked = None, False
        data = getattr(self.trainer, "datamodule", None)
        check_same(self, "data module", data, ("num_classes",))
        names = checked_names(getattr(data, "class_names", None), self.num_classes)
        check_same_names(self.class_names, names, are_chosen="class_names" not in self.from_checkpoint)
        if names is not None and "class_names" in self.from_checkpoint:
            self.class_names = names
        if stage == "fit":
            self.history = DomainHistory()

    def on_train_start(self) -> None:
        """Checks monitors, and restores the RNG state when resuming."""
        super().on_train_start()
        check_monitors(self.trainer, logged_metrics(self.trainer))
        warn_of_target_labels(self.trainer)
        if self.resumed_states is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            set_random_states(self.resumed_states, rank, world_size, self.device)
            self.resumed_states = None

    def on_fit_end(self) -> None:
        """Raises ValueError if a training has ended without a batch, which Lightning accepts."""
        if self.trainer.num_training_batches == 0 and self.trainer.limit_train_batches != 0:
            raise ValueError(
                "There was no training batch: a domain has no images, or fewer than batch_size with drop_last=True."
            )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Gives averaged weights, if there are any, the current counts of BatchNorm."""
        weight_averaging.copy_current_state(self.trainer, self)

    def on_train_epoch_end(self) -> None:
        """Same as `on_train_batch_end`, and steps ReduceLROnPlateau."""
        super().on_train_epoch_end()
        weight_averaging.copy_current_state(self.trainer, self)

    def training_summary(self, batch: Any) -> dict[str, str]:
        """Rows for the table that `RunSummary` prints before training."""
        return training_summary(self, domain_batch(batch, self.num_classes))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves names, normalisation, the validation scores, and the RNG state of every process."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY] = {
            "class_names": self.class_names,
            "mean": self.mean,
            "std": self.std,
            "history": self.history.state_dict(),
        }
        checkpoint["random_states"] = get_random_states(self.device)
        weight_averaging.save_averaged_weights(checkpoint, self.trainer, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the validation scores, and names and normalisation unless they are arguments of the module."""
        super().on_load_checkpoint(checkpoint)
        if (trainer := attached_trainer(self)) is not None:
            weight_averaging.check_weight_averaging(checkpoint, trainer)
        self.resumed_states = checkpoint.get("random_states")
        saved = checkpoint.get(CHECKPOINT_KEY)  # None in a checkpoint of another module
        if saved is not None:
            data = getattr(attached_trainer(self), "datamodule", None)
            names = checked_names(getattr(data, "class_names", None), self.num_classes)
            check_same_names(saved["class_names"], names, are_chosen="class_names" not in self.from_checkpoint)
            self.history.load_state_dict(saved["history"])
            for name in self.from_checkpoint:
                setattr(self, name, tuple(saved[name]))

    def batch_generator(self) -> torch.Generator:
        """A generator seeded by `seed` and the number of batches trained, equal on all processes."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.trainer.fit_loop.total_batch_idx) % 2**63)

    def training_progress(self) -> float:
        """Fraction of the training that is done, from 0 to 1: of `max_epochs` or `max_steps`, whichever ends first."""
        trainer, epochs = self.trainer, self.trainer.max_epochs or 0
        by_epochs = trainer.fit_loop.total_batch_idx / (trainer.num_training_batches * epochs) if epochs > 0 else 0.0
        by_steps = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
        return max(by_epochs, by_steps)
