"""Training on the source domain only: the baseline of domain adaptation."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_recall.adaptation.example_images import domain_images
from lightning_recall.adaptation.images import unit_range
from lightning_recall.adaptation.losses import class_loss
from lightning_recall.adaptation.module import AdaptationModule
from lightning_recall.adaptation.network_checks import check_batch_size


class SourceOnlyModule(AdaptationModule):
    """Trains an encoder and a classifier on the labelled source images; the target images are not used.

    Args:
        kwargs: passed to `AdaptationModule`: encoder, classifier, num_classes, optimizer, ...
    """

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Steps the optimizer on the cross-entropy of the source images."""
        parts = self.checked(batch)
        check_batch_size(parts.source, "source", self)
        loss = class_loss(self.classify(self.encode(parts.source)), parts.labels)
        self.optimize(loss)
        return self.logged({"loss": loss})

    def example_images(
        self, source_images: Tensor, labels: Tensor, target_images: Tensor, ratios: Sequence[float]
    ) -> dict[str, Tensor]:
        """Images for a picture: both domains; nothing is mixed or generated.

        Args:
            source_images: (B, 3, H, W), uint8 or between 0 and 1.
            labels: classes (B,) of the source images; not used.
            target_images: (B, 3, H, W), uint8 or between 0 and 1.
            ratios: not used.

        Returns:
            uint8 images (B, 3, H, W) on the module's device: "source" and "target".
        """
        source, target = (unit_range(part.to(self.device), self.dtype) for part in (source_images, target_images))
        return domain_images(source, target, ratios=())
