"""Exports of an embedder to ONNX, `torch.export` and OpenVINO, each compared with PyTorch once it is written."""

from lightning_recall.models.export.onnx_file import export_onnx
from lightning_recall.models.export.openvino_file import export_openvino
from lightning_recall.models.export.parity import ExportReport
from lightning_recall.models.export.torch_program import export_program

__all__ = ["ExportReport", "export_onnx", "export_openvino", "export_program"]
