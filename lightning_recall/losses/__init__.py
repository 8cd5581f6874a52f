"""Losses: (embeddings (N, D), labels (N,)) -> scalar. Plain torch."""

from lightning_recall.losses.recall_at_k import RecallAtKLoss

__all__ = ["RecallAtKLoss"]
