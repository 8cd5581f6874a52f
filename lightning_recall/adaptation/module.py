"""Base of the modules for domain adaptation: an encoder and a classifier, and their evaluation on both domains."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from lightning_recall._lightning import Callback, attached_trainer
from lightning_recall.adaptation.batches import DomainBatch, domain_batch
from lightning_recall.optimization import ManualOptimization, weight_averaging
from lightning_recall.optimization.distributed_random_states import get_random_states, set_random_states


class AdaptationModule(ManualOptimization):
    """Base of the methods: an encoder and a classifier, with their evaluation on both domains.

    A subclass defines `training_step`. A batch is {"source": (images (B, 3, H, W), labels (B,)), "target": images
    (B, 3, H, W)}.

    Args:
        encoder: images (B, 3, H, W) -> features (B, D).
        classifier: features (B, D) -> logits (B, K).
        num_classes: K, at least 2.
        mean: mean of each channel of images in [0, 1]; None: `encoder.mean` if it exists, otherwise no normalisation.
        std: the same for the standard deviation.
        seed: of the random numbers that a method draws in training.
        kwargs: passed to `ManualOptimization`: optimizer, lr_scheduler, ...
    """

    def __init__(
        self,
        encoder: nn.Module,
        classifier: nn.Module,
        num_classes: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.classifier = classifier
        self.num_classes = num_classes
        self.mean: Any = mean or getattr(encoder, "mean", None) or (0.0, 0.0, 0.0)
        self.std: Any = std or getattr(encoder, "std", None) or (1.0, 1.0, 1.0)
        self.seed = seed
        self.resumed_states: list[dict[str, Any]] | None = None

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W) between 0 and 1."""
        features: Tensor = self.encoder(tv.normalize(images, list(self.mean), list(self.std)))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W), uint8 or between 0 and 1."""
        logits: Tensor = self.classifier(self.encode(unit_range(images, self.dtype)))
        return logits

    def checked(self, batch: Any) -> DomainBatch:
        """The parts of a batch, with images between 0 and 1."""
        source, labels, target = domain_batch(batch, self.num_classes)
        return DomainBatch(unit_range(source, self.dtype), labels, unit_range(target, self.dtype))

    def logged(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logs the losses of a step as train/NAME; returns {"loss": ...} for the Trainer."""
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "loss", sync_dist=True)
        return {"loss": losses["loss"].detach()}

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Puts WeightAveraging first."""
        weight_averaging.put_weight_averaging_first(self.trainer)
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        """Resets state left over from a previously loaded checkpoint."""
        super().setup(stage)
        self.resumed_states = None

    def on_train_start(self) -> None:
        """Restores the RNG state when resuming."""
        super().on_train_start()
        if self.resumed_states is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            set_random_states(self.resumed_states, rank, world_size, self.device)
            self.resumed_states = None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Gives averaged weights, if there are any, the current counts of BatchNorm."""
        weight_averaging.copy_current_state(self.trainer, self)

    def on_train_epoch_end(self) -> None:
        """Same as `on_train_batch_end`, and steps ReduceLROnPlateau."""
        super().on_train_epoch_end()
        weight_averaging.copy_current_state(self.trainer, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the RNG state of every process."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["random_states"] = get_random_states(self.device)
        weight_averaging.save_averaged_weights(checkpoint, self.trainer, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the RNG state that `on_train_start` restores."""
        super().on_load_checkpoint(checkpoint)
        if (trainer := attached_trainer(self)) is not None:
            weight_averaging.check_weight_averaging(checkpoint, trainer)
        self.resumed_states = checkpoint.get("random_states")

    def batch_generator(self) -> torch.Generator:
        """A generator seeded by `seed` and the number of batches trained, equal on all processes."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.trainer.fit_loop.total_batch_idx) % 2**63)

    def training_progress(self) -> float:
        """Fraction of the training that is done, from 0 to 1."""
        total = self.trainer.estimated_stepping_batches
        return self.trainer.fit_loop.total_batch_idx / total


def unit_range(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts uint8 images to floating point between 0 and 1; other images are returned as they are."""
    return images.to(dtype) / 255 if images.dtype == torch.uint8 else images
