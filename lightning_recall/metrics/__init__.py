"""Metrics: torchmetrics.Metric classes over (embeddings (B, D), labels (B,)), and functions of whole galleries."""

from lightning_recall.metrics.cluster_nmi import ClusterNMI
from lightning_recall.metrics.recall_at_k import RecallAtK
from lightning_recall.metrics.retrieval_scores import RetrievalScores
from lightning_recall.metrics.revisited import RevisitedMAP
from lightning_recall.search.neighbors import nearest
from lightning_recall.search.query_expansion import expand_queries
from lightning_recall.search.reranking import k_reciprocal_similarities, score_similarities

__all__ = [
    "ClusterNMI",
    "RecallAtK",
    "RetrievalScores",
    "RevisitedMAP",
    "expand_queries",
    "k_reciprocal_similarities",
    "nearest",
    "score_similarities",
]
