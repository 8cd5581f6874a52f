"""Data modules: one file per benchmark."""

from lightning_recall.datamodules.base import RetrievalDataModule
from lightning_recall.datamodules.chunk_loader import ChunkLoader
from lightning_recall.datamodules.glyphs import GlyphsDataModule

__all__ = ["ChunkLoader", "GlyphsDataModule", "RetrievalDataModule"]
