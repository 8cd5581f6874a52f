"""Metrics: torchmetrics.Metric classes over (embeddings (B, D), labels (B,))."""

from lightning_recall.metrics.cluster_nmi import ClusterNMI
from lightning_recall.metrics.recall_at_k import RecallAtK
from lightning_recall.metrics.retrieval_scores import RetrievalScores
from lightning_recall.metrics.revisited import RevisitedMAP

__all__ = ["ClusterNMI", "RecallAtK", "RetrievalScores", "RevisitedMAP"]
