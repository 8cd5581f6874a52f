"""Embeddings in files, with what is known of each item and of the model that computed them. Plain torch."""

from lightning_recall.embedding_sets.embedding_set import EmbeddingSet, read_embedding_set
from lightning_recall.embedding_sets.mapped import MappedEmbeddings, map_embedding_set
from lightning_recall.embedding_sets.shards import load_embeddings

__all__ = ["EmbeddingSet", "MappedEmbeddings", "load_embeddings", "map_embedding_set", "read_embedding_set"]
