"""Tables and pictures of two domains, and a table of predictions."""

from lightning_recall.adaptation.callbacks.cluster_agreement import ClusterAgreement
from lightning_recall.adaptation.callbacks.confusion_matrix import ConfusionMatrix
from lightning_recall.adaptation.callbacks.domain_images import DomainImages
from lightning_recall.adaptation.callbacks.domain_table import DomainTable
from lightning_recall.adaptation.callbacks.feature_plane import FeaturePlane
from lightning_recall.adaptation.callbacks.prediction_writer import PredictionWriter

__all__ = ["ClusterAgreement", "ConfusionMatrix", "DomainImages", "DomainTable", "FeaturePlane", "PredictionWriter"]
