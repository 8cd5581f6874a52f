"""Gradient checkpointing by batch chunks: large batches in the memory of one chunk."""

from lightning_recall.recompute.chunk_size import largest_chunk_size
from lightning_recall.recompute.chunks import chunked_forward

__all__ = ["chunked_forward", "largest_chunk_size"]
