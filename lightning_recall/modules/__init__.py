"""Lightning modules."""

from lightning_recall.modules.retrieval import RetrievalModule

__all__ = ["RetrievalModule"]
