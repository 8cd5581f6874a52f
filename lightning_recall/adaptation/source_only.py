"""Training on the source domain only: the baseline of domain adaptation."""

from typing import Any

from torch import Tensor

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
