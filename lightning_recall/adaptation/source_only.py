"""Training on the source domain only: the baseline of domain adaptation."""

from typing import Any

from torch import Tensor

from lightning_recall.adaptation.losses import class_loss
from lightning_recall.adaptation.module import AdaptationModule
from lightning_recall.adaptation.network_checks import check_batch_size


class SourceOnlyModule(AdaptationModule):
    """Trains an encoder and a classifier on the labelled source images; target images are not used in training.

    Minimises CE(C(F(x_s)), y) for source images x_s with classes y, encoder F and classifier C. Batches are those of
    the other methods, so that runs differ in the method only. Logs `train/loss`.

    Args:
        kwargs: passed to `AdaptationModule`: encoder, classifier, num_classes, optimizer, ...

    Raises:
        ValueError: for a classifier that does not return `num_classes` logits, and a batch of one image with BatchNorm.

    >>> import torch
    >>> from lightning_recall.adaptation.models.digits import DigitEncoder, FeatureClassifier
    >>> module = SourceOnlyModule(encoder=DigitEncoder(), classifier=FeatureClassifier(128, 10), num_classes=10)
    >>> module(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Steps the optimizer on the cross-entropy of the source images."""
        parts = self.checked(batch)
        check_batch_size(parts.source, "source", self)
        loss = class_loss(self.classify(self.encode(parts.source)), parts.labels)
        self.optimize(loss)
        return self.logged({"loss": loss})
