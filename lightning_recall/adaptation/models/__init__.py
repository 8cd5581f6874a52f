"""Networks for domain adaptation: encoders, classifiers, generators and discriminators."""

from lightning_recall.adaptation.models.backbone import BackboneEncoder
from lightning_recall.adaptation.models.dann import DANNClassifier, DANNDiscriminator, DANNEncoder
from lightning_recall.adaptation.models.digits import (
    DigitDiscriminator,
    DigitEncoder,
    DigitGenerator,
    DomainDiscriminator,
    FeatureClassifier,
    GaussianEncoder,
)
from lightning_recall.adaptation.models.discriminator import FeatureDiscriminator

__all__ = [
    "BackboneEncoder",
    "DANNClassifier",
    "DANNDiscriminator",
    "DANNEncoder",
    "DigitDiscriminator",
    "DigitEncoder",
    "DigitGenerator",
    "DomainDiscriminator",
    "FeatureClassifier",
    "FeatureDiscriminator",
    "GaussianEncoder",
]
