"""LightningModules."""

from lightning_recall.modules.retrieval import RetrievalModule
from lightning_recall.optimization.manual_optimization import ManualOptimization

__all__ = ["ManualOptimization", "RetrievalModule"]
