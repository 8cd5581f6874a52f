"""Models: images -> unit embeddings. Plain torch."""

from lightning_recall.models.embedder import ImageEmbedder
from lightning_recall.models.pooling import GeM
from lightning_recall.models.small_convnet import SmallConvNet

__all__ = ["GeM", "ImageEmbedder", "SmallConvNet"]
