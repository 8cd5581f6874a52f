"""Losses of (logits (B, C, ...), target (B, ...)) -> scalar, in plain torch."""

from lightning_recall.segmentation.losses.recall_cross_entropy import RecallCrossEntropyLoss

__all__ = ["RecallCrossEntropyLoss"]
