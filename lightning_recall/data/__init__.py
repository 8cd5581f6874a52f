"""Image data sets, transforms, and the loader of chunked batches."""

from lightning_recall.data.attributes import RetrievalDataset
from lightning_recall.data.chunk_loader import ChunkLoader
from lightning_recall.data.decoding import read_image
from lightning_recall.data.image_files import ImageFiles
from lightning_recall.data.images_in_memory import ImagesInMemory
from lightning_recall.data.transforms import ImageTransforms

__all__ = ["ChunkLoader", "ImageFiles", "ImageTransforms", "ImagesInMemory", "RetrievalDataset", "read_image"]
