"""Gradient checkpointing by batch chunks: trains with large batches, storing the activations of one chunk."""

from lightning_recall.recompute.chunk_size import auto_chunk_size, largest_chunk_size
from lightning_recall.recompute.chunks import chunked_forward

__all__ = ["auto_chunk_size", "chunked_forward", "largest_chunk_size"]
