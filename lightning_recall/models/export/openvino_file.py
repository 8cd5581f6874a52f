"""Exports an embedder with its preprocessing to OpenVINO."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recall.models.export.onnx_file import check_onnx, write_onnx
from lightning_recall.models.export.parity import Embed, ExportReport, write_and_compare
from lightning_recall.models.export.prepare import check_torch, example_images, new_path, prepared


def export_openvino(
    embedder: nn.Module,
    path: str | Path,
    image_size: int | tuple[int, int],
    channels: int = 3,
    half: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Writes an embedder to OpenVINO's two files, model.xml and model.bin, and checks them.

    Input "images" (B, C, H, W) uint8, output "embeddings" (B, D) float32 of unit norm; the batch size is dynamic. The
    files include scaling to [0, 1] and normalisation, but not resizing and cropping to H x W: `preprocessing` is stored
    for that. LoRA matrices are merged. OpenVINO then embeds the same images as PyTorch, in batches of 1 and of 7, on
    the CPU in float32. By default OpenVINO itself computes in bfloat16 on CPUs that have instructions for it; compile
    the model with {"INFERENCE_PRECISION_HINT": "f32"} for the embeddings of PyTorch. Needs
    `pip install "lightning-recall[openvino]"`.

    Args:
        embedder: images (B, C, H, W) uint8 -> (B, D); exported in evaluation mode; the embedder itself is not changed.
        path: path of the new file, ending with .xml.
        image_size: H and W, or one number for both.
        channels: number of image channels.
        half: float16 for weights, which halves the file. The device chooses the precision of activations: float32 or
            bfloat16 on CPUs, float16 on GPUs.
        preprocessing: settings for `lightning_recall.pil_preprocessing.preprocess`, stored as JSON in the model's
            `rt_info` under "preprocessing".

    Returns:
        What was written, and its cosines to PyTorch.

    Raises:
        ValueError: for existing files, another suffix, and images that the embedder does not accept.
        ImportError: if openvino, onnx, onnxscript or onnxruntime is not installed.
        RuntimeError: if the embeddings differ from PyTorch's, and with torch below 2.9.
    """
    check_torch()
    path = new_path(path, ".xml")
    check_openvino()
    images = example_images(image_size, channels)

    def write(file: Path) -> None:
        write_openvino(prepared(embedder), file, images, half, preprocessing)

    return write_and_compare(embedder, path, images, half, write, openvino_embedder)


def check_openvino() -> None:
    """Raises ImportError if a package that the export to OpenVINO needs is not installed."""
    try:
        import openvino  # noqa: F401  # an optional extra
    except ImportError as error:
        raise ImportError('Exporting to OpenVINO needs openvino: pip install "lightning-recall[openvino]".') from error
    check_onnx()


def write_openvino(
    module: nn.Module, path: Path, images: Tensor, half: bool, preprocessing: Mapping[str, Any] | None
) -> None:
    """Writes a module in evaluation mode; images (B, C, H, W) uint8 are an example of its input.

    It is read from an ONNX file: `openvino.convert_model` sends usage statistics to its makers.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "embedder.onnx")
        write_onnx(module, file, images, False, None)
        model = openvino.Core().read_model(file)
        if preprocessing is not None:
            model.set_rt_info(json.dumps(dict(preprocessing)), "preprocessing")
        openvino.save_model(model, path, compress_to_fp16=half)


def openvino_embedder(path: Path, precision: str = "f32") -> Embed:
    """Embeds images with OpenVINO on the CPU, with activations in "f32", "bf16" or "f16"."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return lambda images: torch.from_numpy(compiled(images.numpy())["embeddings"].copy())
