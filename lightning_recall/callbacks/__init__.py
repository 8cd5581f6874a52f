"""Callbacks that evaluate any LightningModule whose forward returns embeddings, and plot the results."""

from lightning_recall.callbacks.attribute_scheduler import AttributeScheduler
from lightning_recall.callbacks.embedding_writer import EmbeddingWriter, load_embeddings
from lightning_recall.callbacks.evaluation_charts import EvaluationCharts
from lightning_recall.callbacks.evaluation_report import EvaluationReport
from lightning_recall.callbacks.interrupt_checkpoint import InterruptCheckpoint
from lightning_recall.callbacks.learning_rate_suggestion import LearningRateSuggestion
from lightning_recall.callbacks.model_saving import ModelSaver
from lightning_recall.callbacks.retrieval_evaluation import RetrievalEvaluation
from lightning_recall.callbacks.retrieved_images import RetrievedImages
from lightning_recall.callbacks.run_summary import RunSummary
from lightning_recall.callbacks.threshold_selection import ThresholdSelection
from lightning_recall.callbacks.training_curves import TrainingCurves

__all__ = [
    "AttributeScheduler",
    "EmbeddingWriter",
    "EvaluationCharts",
    "EvaluationReport",
    "InterruptCheckpoint",
    "LearningRateSuggestion",
    "ModelSaver",
    "RetrievalEvaluation",
    "RetrievedImages",
    "RunSummary",
    "ThresholdSelection",
    "TrainingCurves",
    "load_embeddings",
]
