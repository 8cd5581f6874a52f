"""Smaller embeddings: fewer dimensions, fewer bits, and the recall that is left. Plain torch."""

__all__: list[str] = []
