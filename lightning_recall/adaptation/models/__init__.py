"""Networks for domain adaptation: encoders, classifiers, generators and discriminators."""

from lightning_recall.adaptation.models.backbone import BackboneEncoder
from lightning_recall.adaptation.models.dann import DANNClassifier, DANNEncoder
from lightning_recall.adaptation.models.digits import (
    DigitDiscriminator,
    DigitEncoder,
    DigitGenerator,
    FeatureClassifier,
    GaussianEncoder,
)
from lightning_recall.adaptation.models.discriminator import FeatureDiscriminator
from lightning_recall.adaptation.models.images import ImageDiscriminator, ImageGenerator

__all__ = [
    "BackboneEncoder",
    "DANNClassifier",
    "DANNEncoder",
    "DigitDiscriminator",
    "DigitEncoder",
    "DigitGenerator",
    "FeatureClassifier",
    "FeatureDiscriminator",
    "GaussianEncoder",
    "ImageDiscriminator",
    "ImageGenerator",
]
