"""Exact search in blocks: nearest neighbours, ranks of relevant items, query expansion and re-ranking. Plain torch."""

from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.neighbors import nearest
from lightning_recall.search.operating_points import OperatingPoint, RocCurve
from lightning_recall.search.query_expansion import expand_queries
from lightning_recall.search.relevant_ranks import LabelledEmbeddings
from lightning_recall.search.reranking import k_reciprocal_similarities
from lightning_recall.search.result import SearchResult

__all__ = [
    "EmbeddingBlocks",
    "LabelledEmbeddings",
    "OperatingPoint",
    "RocCurve",
    "SearchResult",
    "expand_queries",
    "k_reciprocal_similarities",
    "nearest",
]
