"""LightningModules."""

from lightning_recall.modules.manual_optimization import ManualOptimization
from lightning_recall.modules.retrieval import RetrievalModule

__all__ = ["ManualOptimization", "RetrievalModule"]
