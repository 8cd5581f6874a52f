"""Losses: (embeddings (N, D), labels (N,)) -> scalar. Plain torch."""

from lightning_recall.losses.average_precision import SmoothAPLoss, SupAPLoss
from lightning_recall.losses.recall_at_k import RecallAtKLoss
from lightning_recall.losses.sup_recall_at_k import SupRecallAtKLoss

__all__ = ["RecallAtKLoss", "SmoothAPLoss", "SupAPLoss", "SupRecallAtKLoss"]
