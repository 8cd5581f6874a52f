"""Exports an embedder with its preprocessing to ONNX."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn


def export_onnx(embedder: nn.Module, path: str | Path, image_size: int | tuple[int, int], channels: int = 3) -> None:
    """Writes an embedder to an ONNX file that maps uint8 images to unit-norm embeddings.

    Input "images" (B, C, H, W) uint8, output "embeddings" (B, D); the batch size is dynamic. The file includes scaling
    to [0, 1] and normalisation, but not resizing and cropping to H x W. Needs `pip install lightning-recall[onnx]`.

    Args:
        embedder: images (B, C, H, W) uint8 -> (B, D); exported in evaluation mode; the embedder itself is not changed.
        path: path of the ONNX file.
        image_size: H and W, or one number for both.
        channels: number of image channels.

    Raises:
        ImportError: if onnx or onnxscript is not installed.
        RuntimeError: with torch below 2.9, whose exporter does not support a dynamic batch size.
    """
    if torch.__version__ < "2.9":
        raise RuntimeError(f"export_onnx needs torch 2.9 or later, this is {torch.__version__}.")
    try:
        import onnx  # noqa: F401  # an optional extra
        import onnxscript  # noqa: F401  # an optional extra, which torch's exporter needs
    except ImportError as error:
        raise ImportError("export_onnx needs onnx and onnxscript: pip install lightning-recall[onnx]") from error
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    module = copy.deepcopy(embedder).cpu().eval()
    images = torch.randint(0, 256, (2, channels, height, width), dtype=torch.uint8)
    shapes: Any = {"images": {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # internal warnings of the exporter
        torch.onnx.export(
            module,
            (images,),
            str(path),
            input_names=["images"],
            output_names=["embeddings"],
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
