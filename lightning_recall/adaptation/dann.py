"""DANN: features that a domain discriminator cannot tell apart, by gradient reversal; optionally with domain mixup."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_recall.adaptation.domain_mixup import DomainMixup
from lightning_recall.adaptation.example_images import domain_images
from lightning_recall.adaptation.gradient_reversal import reversal_strength, reverse_gradient
from lightning_recall.adaptation.images import unit_range
from lightning_recall.adaptation.losses import class_loss, domain_loss
from lightning_recall.adaptation.module import AdaptationModule
from lightning_recall.adaptation.network_checks import (
    apply_to_features,
    check_batch_size,
    check_domain_logits,
    check_returns_logits,
)
from lightning_recall.checks import check_above_zero


class DANNModule(AdaptationModule):
    """Trains an encoder whose features a domain discriminator cannot tell apart: DANN, optionally with domain mixup.

    With source images x_s with classes y, target images x_t, encoder F, classifier C, discriminator D behind a gradient
    reversal of strength alpha, and mix(s, t) = lambda s + (1 - lambda) t with one ratio lambda for each batch, one
    optimizer minimises

        CE(C(F(x_s)), y) + domain_weight (BCE(D(F(x_s)), 1) + BCE(D(F(x_t)), 0))
        + mixup_weight (BCE(D(mix(F(x_s), F(x_t))), lambda) + BCE(D(F(mix(x_s, x_t))), lambda))

    The reversal makes the encoder maximise what the discriminator minimises (Ganin et al., JMLR 2016, arXiv
    1505.07818). alpha rises from 0 to 1 with the batches trained: see `reversal_strength`. The second line is domain
    mixup (arXiv 1912.01805), at the feature and the pixel level; the levels of `mixup` choose its terms.

    The released code of domain mixup has a DANN with the feature level, `DomainMixup(clip=0.3, levels=["feature"])`,
    and both weights 1. It casts the soft label lambda to an integer, so that all mixes count as target; here lambda
    stays the label. It builds a new optimizer in each epoch; here one optimizer keeps its state.

    Logs `train/loss`, `train/class_loss`, `train/domain_loss` and, with mixup, `train/mixup_loss`, all unweighted but
    the first. `global_step` counts one step for each batch.

    With several processes each has the same number of images, and networks without BatchNorm train as on one process.
    BatchNorm uses the statistics of each process's images; `sync_batchnorm=True` of the Trainer, for GPUs, those of the
    whole batch.

    Args:
        encoder: F, images (B, 3, H, W) -> features (B, D).
        classifier: C, features (B, D) -> logits (B, K).
        discriminator: D, features (B, D) -> logits (B,), positive for the source.
        num_classes: K, at least 2.
        mixup: draws lambda, and says what is mixed; None: plain DANN.
        domain_weight: weight of the domain losses of source and target; at least 0.
        mixup_weight: weight of the domain losses of mixed features and images; at least 0.
        reversal_gamma: speed at which alpha rises; above 0. The paper and the released code have 10.
        kwargs: passed to `AdaptationModule`.

    Raises:
        ValueError: for numbers out of range, networks that do not fit, a batch of one image with BatchNorm, and a
            training without end, such as `max_epochs=-1`: alpha depends on its length.

    >>> import torch
    >>> from lightning_recall.adaptation.models import DigitEncoder, FeatureClassifier, FeatureDiscriminator
    >>> networks = DigitEncoder(), FeatureClassifier(128, 10), FeatureDiscriminator(128, hidden_dims=[100])
    >>> module = DANNModule(*networks, num_classes=10, mixup=DomainMixup(clip=0.3, levels=["feature"]))
    >>> module(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        encoder: nn.Module,
        classifier: nn.Module,
        discriminator: nn.Module,
        num_classes: int,
        mixup: DomainMixup | None = None,
        domain_weight: float = 1.0,
        mixup_weight: float = 1.0,
        reversal_gamma: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, classifier, num_classes, **kwargs)
        for name, weight in (("domain_weight", domain_weight), ("mixup_weight", mixup_weight)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, got {weight}.")
        check_above_zero(reversal_gamma=reversal_gamma)
        check_returns_logits(discriminator, "discriminator", (nn.Sigmoid, nn.Softmax, nn.LogSoftmax))
        self.discriminator = discriminator
        self.mixup = mixup
        self.domain_weight = domain_weight
        self.mixup_weight = mixup_weight
        self.reversal_gamma = reversal_gamma

    def on_train_start(self) -> None:
        """Checks that the training has an end."""
        super().on_train_start()
        if self.trainer.estimated_stepping_batches == math.inf:
            raise ValueError(
                "DANN needs the length of the training, because the strength of the gradient reversal rises with it: "
                "set max_epochs of the Trainer and use a loader with a length, or set max_steps."
            )

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Steps the optimizer on the class loss and the domain losses."""
        parts = self.checked(batch, equal_sizes=self.mixup is not None)
        for domain, images in (("source", parts.source), ("target", parts.target)):
            check_batch_size(images, domain, self)
        source, target = self.encode(parts.source), self.encode(parts.target)
        losses = {
            "class_loss": class_loss(self.classify(source), parts.labels),
            "domain_loss": self.judged(source, 1.0) + self.judged(target, 0.0),
        }
        if self.mixup is not None:
            ratio = self.mixup.draw(self.batch_generator())
            mixed = []
            if "feature" in self.mixup.levels:
                mixed.append(self.mixup.mix(source, target, ratio))
            if "pixel" in self.mixup.levels:
                mixed.append(self.encode(self.mixup.mix(parts.source, parts.target, ratio)))
            losses["mixup_loss"] = sum((self.judged(features, ratio) for features in mixed), source.new_zeros(()))
        loss = losses["class_loss"] + self.domain_weight * losses["domain_loss"]
        if "mixup_loss" in losses:
            loss = loss + self.mixup_weight * losses["mixup_loss"]
        self.optimize(loss)
        return self.logged({"loss": loss, **losses})

    def judged(self, features: Tensor, label: float) -> Tensor:
        """Domain loss of features (B, D) behind the gradient reversal; `label` may be soft."""
        alpha = reversal_strength(self.training_progress(), self.reversal_gamma)
        logits = apply_to_features(self.discriminator, reverse_gradient(features, alpha), "discriminator")
        check_domain_logits(logits, len(features))
        return domain_loss(logits, label)

    def example_images(
        self, source_images: Tensor, labels: Tensor, target_images: Tensor, ratios: Sequence[float]
    ) -> dict[str, Tensor]:
        """Images for a picture: both domains and their mixes; nothing is generated.

        Args:
            source_images: (B, 3, H, W), uint8 or between 0 and 1.
            labels: classes (B,) of the source images; not used.
            target_images: (B, 3, H, W), uint8 or between 0 and 1.
            ratios: share of the source in each mix, from 0 to 1.

        Returns:
            uint8 images (B, 3, H, W) on the module's device: "source", "target", and "mixed RATIO" for each ratio.

        Raises:
            ValueError: for different shapes, or a ratio outside [0, 1].
        """
        source, target = (unit_range(part.to(self.device), self.dtype) for part in (source_images, target_images))
        return domain_images(source, target, ratios)
