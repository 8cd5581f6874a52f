"""Models: images -> unit-norm embeddings. Depends only on torch, NumPy and timm."""

from lightning_recall.models.embedder import ImageEmbedder
from lightning_recall.models.export import ExportReport, export_onnx, export_openvino, export_program
from lightning_recall.models.lora import LoRAEmbedder
from lightning_recall.models.multi_scale import MultiScale
from lightning_recall.models.pooling import GeM
from lightning_recall.models.small_convnet import SmallConvNet
from lightning_recall.models.whitening import PCAWhitening

__all__ = [
    "ExportReport",
    "GeM",
    "ImageEmbedder",
    "LoRAEmbedder",
    "MultiScale",
    "PCAWhitening",
    "SmallConvNet",
    "export_onnx",
    "export_openvino",
    "export_program",
]
