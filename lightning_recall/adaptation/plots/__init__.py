"""Figures of domain adaptation: confusion matrices, images of both domains and between, and features in the plane."""

from lightning_recall.adaptation.plots.confusion_matrix import draw_confusion_matrices

__all__ = ["draw_confusion_matrices"]
