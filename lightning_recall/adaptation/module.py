"""Base of the modules for domain adaptation: an encoder and a classifier, and their evaluation on both domains."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from lightning_recall.adaptation.batches import DomainBatch, domain_batch
from lightning_recall.optimization import ManualOptimization


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
