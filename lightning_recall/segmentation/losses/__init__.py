"""Losses of (logits (B, C, ...), target (B, ...)) -> scalar, in plain torch."""

from lightning_recall.segmentation.losses.recall_cross_entropy import RecallCrossEntropyLoss
from lightning_recall.segmentation.losses.structural_similarity import StructuralSimilarityLoss

__all__ = ["RecallCrossEntropyLoss", "StructuralSimilarityLoss"]
