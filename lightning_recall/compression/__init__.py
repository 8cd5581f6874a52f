"""Smaller embeddings: fewer dimensions, fewer bits, and the recall that is left. Plain torch."""

from lightning_recall.compression.dimensions import PCA, truncate
from lightning_recall.compression.plot import draw_sizes
from lightning_recall.compression.quantization import hamming, int8_scale, pack_binary, quantize_int8, unpack_signs
from lightning_recall.compression.size_rows import SizeRow, write_size_csv
from lightning_recall.compression.sizes import size_table

__all__ = [
    "PCA",
    "SizeRow",
    "draw_sizes",
    "hamming",
    "int8_scale",
    "pack_binary",
    "quantize_int8",
    "size_table",
    "truncate",
    "unpack_signs",
    "write_size_csv",
]
