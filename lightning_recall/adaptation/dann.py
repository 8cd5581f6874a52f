"""DANN: an encoder that a domain discriminator cannot tell apart, by gradient reversal; optionally with domain mixup."""

from typing import Any

from torch import Tensor, nn

from lightning_recall.adaptation.domain_mixup import DomainMixup
from lightning_recall.adaptation.gradient_reversal import reversal_strength, reverse_gradient
from lightning_recall.adaptation.losses import class_loss, domain_loss
from lightning_recall.adaptation.module import AdaptationModule


class DANNModule(AdaptationModule):
    """Domain-adversarial training (Ganin et al., JMLR 2016, arXiv 1505.07818), optionally with domain mixup.

    Args:
        discriminator: features (B, D) -> logits (B,), positive for the source.
        mixup: None: plain DANN. Otherwise mixed features, mixed images, or both are further inputs of the
            discriminator, with the mixing ratio as soft label (arXiv 1912.01805).
        domain_weight: weight of the domain losses of source and target.
        mixup_weight: weight of the domain losses of mixed features and images.
        reversal_gamma: speed of the rise of the reversal's strength: see `reversal_strength`.
        kwargs: passed to `AdaptationModule`.
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
        self.discriminator = discriminator
        self.mixup = mixup
        self.domain_weight = domain_weight
        self.mixup_weight = mixup_weight
        self.reversal_gamma = reversal_gamma

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Steps the optimizer on the class loss and the domain losses."""
        parts = self.checked(batch)
        source, target = self.encode(parts.source), self.encode(parts.target)
        losses = {
            "class_loss": class_loss(self.classifier(source), parts.labels),
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
        """Domain loss of features (B, D) behind the gradient reversal."""
        alpha = reversal_strength(self.training_progress(), self.reversal_gamma)
        return domain_loss(self.discriminator(reverse_gradient(features, alpha)), label)
