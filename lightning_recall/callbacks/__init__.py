"""Callbacks: evaluation and pictures for any LightningModule whose forward gives embeddings."""

from lightning_recall.callbacks.evaluation_charts import EvaluationCharts
from lightning_recall.callbacks.evaluation_report import EvaluationReport
from lightning_recall.callbacks.learning_rate_suggestion import LearningRateSuggestion
from lightning_recall.callbacks.retrieval_evaluation import RetrievalEvaluation
from lightning_recall.callbacks.retrieved_images import RetrievedImages, draw_neighbors
from lightning_recall.callbacks.run_summary import RunSummary
from lightning_recall.callbacks.saved_embeddings import SavedEmbeddings, load_embeddings
from lightning_recall.callbacks.saved_on_interrupt import SavedOnInterrupt
from lightning_recall.callbacks.scheduled_settings import ScheduledSettings
from lightning_recall.callbacks.training_curves import TrainingCurves

__all__ = [
    "EvaluationCharts",
    "EvaluationReport",
    "LearningRateSuggestion",
    "RetrievalEvaluation",
    "RetrievedImages",
    "RunSummary",
    "SavedEmbeddings",
    "SavedOnInterrupt",
    "ScheduledSettings",
    "TrainingCurves",
    "draw_neighbors",
    "load_embeddings",
]
