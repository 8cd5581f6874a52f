"""Compares the embeddings of two models on the same images. Plain torch."""

from lightning_recall.comparison.changes import Changes
from lightning_recall.comparison.compare import ClassDifference, Comparison, ScoreDifference, compare
from lightning_recall.comparison.output import write_comparison

__all__ = ["Changes", "ClassDifference", "Comparison", "ScoreDifference", "compare", "write_comparison"]
