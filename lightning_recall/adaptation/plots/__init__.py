"""Figures of domain adaptation: confusion matrices, images of both domains and between, and features in the plane."""

from lightning_recall.adaptation.plots.confusion_matrix import draw_confusion_matrices
from lightning_recall.adaptation.plots.domain_images import draw_domain_images
from lightning_recall.adaptation.plots.feature_plane import FeaturePoints, draw_feature_planes
from lightning_recall.adaptation.plots.projection import Projection, project

__all__ = [
    "FeaturePoints",
    "Projection",
    "draw_confusion_matrices",
    "draw_domain_images",
    "draw_feature_planes",
    "project",
]
