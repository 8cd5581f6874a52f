"""Metrics: torchmetrics.Metric classes over (embeddings (B, D), labels (B,)), and scores of a similarity matrix."""

from lightning_recall.metrics.bootstrap import Interval, class_bootstrap, class_bootstraps, score_intervals
from lightning_recall.metrics.cluster_nmi import ClusterNMI
from lightning_recall.metrics.open_set import OpenSetScores
from lightning_recall.metrics.recall_at_k import RecallAtK
from lightning_recall.metrics.retrieval_scores import RetrievalScores
from lightning_recall.metrics.revisited import GroundTruth, RevisitedMAP
from lightning_recall.metrics.scores_in_parts import score_in_parts
from lightning_recall.metrics.similarity_scores import score_similarities
from lightning_recall.metrics.single_gallery_shot import SingleGalleryShotCMC
from lightning_recall.metrics.verification import Verification, VerificationScores, verify

__all__ = [
    "ClusterNMI",
    "GroundTruth",
    "Interval",
    "OpenSetScores",
    "RecallAtK",
    "RetrievalScores",
    "RevisitedMAP",
    "SingleGalleryShotCMC",
    "Verification",
    "VerificationScores",
    "class_bootstrap",
    "class_bootstraps",
    "score_in_parts",
    "score_intervals",
    "score_similarities",
    "verify",
]
