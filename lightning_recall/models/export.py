"""Exports an embedder with its preprocessing to ONNX."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recall.checks import first_line
from lightning_recall.models.lora import LoRAEmbedder

FIXED_SIZE = (
    "dynamic_size=True needs a backbone that accepts images of any size, such as a convnet: pass dynamic_size=False."
)


def export_onnx(
    embedder: nn.Module,
    path: str | Path,
    image_size: int | tuple[int, int],
    channels: int = 3,
    dynamic_size: bool = False,
) -> None:
    """Writes an embedder to an ONNX file that maps uint8 images to unit-norm embeddings.

    Input "images" (B, C, H, W) uint8, output "embeddings" (B, D); the batch size is dynamic. The file includes scaling
    to [0, 1] and normalisation, but not resizing and cropping to H x W. LoRA matrices are merged. Needs
    `pip install lightning-recall[onnx]`.

    Args:
        embedder: images (B, C, H, W) uint8 -> (B, D); exported in evaluation mode; the embedder itself is not changed.
        path: path of the ONNX file.
        image_size: H and W, or one number for both.
        channels: number of image channels.
        dynamic_size: whether the file accepts images of other heights and widths; image_size is then only an example.
            Most convnets do; ViTs and networks with a fixed input size do not.

    Raises:
        ValueError: for dynamic_size=True with an embedder that only accepts some image sizes.
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
    module = copy.deepcopy(embedder.merged() if isinstance(embedder, LoRAEmbedder) else embedder).cpu().eval()
    images = torch.randint(0, 256, (2, channels, height, width), dtype=torch.uint8)
    dims: dict[int, Any] = {0: torch.export.Dim("batch")}
    if dynamic_size:
        check_other_size(module, images)
        dims |= {2: torch.export.Dim("height", min=32), 3: torch.export.Dim("width", min=32)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # internal warnings of the exporter
        try:
            torch.onnx.export(
                module,
                (images,),
                str(path),
                input_names=["images"],
                output_names=["embeddings"],
                dynamo=True,
                dynamic_shapes=(dims,),  # of the only argument
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            if dynamic_size:
                raise ValueError(FIXED_SIZE) from error
            raise


def check_other_size(module: nn.Module, images: Tensor) -> None:
    """Raises ValueError if a module does not accept images that are larger and not square."""
    larger = torch.nn.functional.pad(images, (0, 96, 0, 32))
    try:
        with torch.no_grad():
            module(larger)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"{FIXED_SIZE} ({first_line(error)})") from error
