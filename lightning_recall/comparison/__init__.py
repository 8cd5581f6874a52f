"""Compares the embeddings of two models on the same images. Plain torch."""

__all__: list[str] = []
