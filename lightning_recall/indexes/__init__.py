"""Indexes of embeddings that are saved with file names, model and threshold, and searched. Plain torch."""

from lightning_recall.indexes.folder import SearchIndex, build_index, open_index
from lightning_recall.indexes.items import Item
from lightning_recall.indexes.manifest import Manifest
from lightning_recall.indexes.qdrant import export_to_qdrant
from lightning_recall.indexes.recall import IndexRecall, measure_recall
from lightning_recall.indexes.vector_index import VectorIndex

__all__ = [
    "IndexRecall",
    "Item",
    "Manifest",
    "SearchIndex",
    "VectorIndex",
    "build_index",
    "export_to_qdrant",
    "measure_recall",
    "open_index",
]
