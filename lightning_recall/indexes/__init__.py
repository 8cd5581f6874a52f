"""Indexes of embeddings that are saved with file names, model and threshold, and searched. Plain torch."""

__all__: list[str] = []
