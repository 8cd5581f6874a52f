"""Tables and pictures of two domains."""

from lightning_recall.adaptation.callbacks.confusion_matrix import ConfusionMatrix
from lightning_recall.adaptation.callbacks.domain_images import DomainImages
from lightning_recall.adaptation.callbacks.domain_table import DomainTable
from lightning_recall.adaptation.callbacks.feature_plane import FeaturePlane

__all__ = ["ConfusionMatrix", "DomainImages", "DomainTable", "FeaturePlane"]
