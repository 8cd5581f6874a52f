"""Exports an embedder with its preprocessing to ONNX."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recall.checks import first_line
from lightning_recall.models.export.parity import Embed, ExportReport, embed, write_and_compare
from lightning_recall.models.export.prepare import check_torch, example_images, new_path, prepared

FIXED_SIZE = (
    "dynamic_size=True needs a backbone that accepts images of any size, such as a convnet: pass dynamic_size=False."
)


def export_onnx(
    embedder: nn.Module,
    path: str | Path,
    image_size: int | tuple[int, int],
    channels: int = 3,
    dynamic_size: bool = False,
    half: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Writes an embedder to an ONNX file that maps uint8 images to unit-norm embeddings, and checks the file.

    Input "images" (B, C, H, W) uint8, output "embeddings" (B, D) float32; the batch size is dynamic. The file includes
    scaling to [0, 1] and normalisation, but not resizing and cropping to H x W: `preprocessing` is stored for that.
    LoRA matrices are merged. ONNX Runtime then embeds the same images as PyTorch, in batches of 1 and of 7. Needs
    `pip install "lightning-recall[onnx]"`.

    Args:
        embedder: images (B, C, H, W) uint8 -> (B, D); exported in evaluation mode; the embedder itself is not changed.
        path: path of the new file, ending with .onnx.
        image_size: H and W, or one number for both.
        channels: number of image channels.
        dynamic_size: whether the file accepts images of other heights and widths; image_size is then only an example.
            Most convnets do; ViTs and networks with a fixed input size do not.
        half: float16 for weights and activations, which halves the file. ONNX Runtime computes in float16 on GPUs; on
            most CPUs it converts to float32 and back, which takes longer than float32.
        preprocessing: settings for `lightning_recall.pil_preprocessing.preprocess`, stored as JSON in the file's
            metadata under "preprocessing".

    Returns:
        What was written, and its cosines to PyTorch.

    Raises:
        ValueError: for an existing file, another suffix, images that the embedder does not accept, and
            dynamic_size=True with an embedder that only accepts some image sizes.
        ImportError: if onnx, onnxscript or onnxruntime is not installed.
        RuntimeError: if the file's embeddings differ from PyTorch's; and with torch below 2.9, whose exporter does not
            support a dynamic batch size.
    """
    check_torch()
    path = new_path(path, ".onnx")
    check_onnx()
    images = example_images(image_size, channels)

    def write(file: Path) -> None:
        write_onnx(prepared(embedder, half), file, images, dynamic_size, preprocessing)

    return write_and_compare(embedder, path, images, half, write, onnx_embedder)


def check_onnx() -> None:
    """Raises ImportError if a package that the export to ONNX needs is not installed."""
    try:
        import onnx  # noqa: F401  # an optional extra
        import onnxruntime  # noqa: F401  # an optional extra
        import onnxscript  # noqa: F401  # an optional extra, which torch's exporter needs
    except ImportError as error:
        raise ImportError(
            f'Exporting to ONNX needs onnx, onnxruntime and onnxscript: pip install "lightning-recall[onnx]" ({error}).'
        ) from error


def write_onnx(
    module: nn.Module, path: Path, images: Tensor, dynamic_size: bool, preprocessing: Mapping[str, Any] | None
) -> None:
    """Writes a module in evaluation mode; images (B, C, H, W) uint8 are an example of its input."""
    dims: dict[int, Any] = {0: torch.export.Dim("batch")}
    if dynamic_size:
        check_other_size(module, images)
        dims |= {2: torch.export.Dim("height", min=32), 3: torch.export.Dim("width", min=32)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # internal warnings of the exporter
        try:
            program = torch.onnx.export(
                module,
                (images[:2],),
                input_names=["images"],
                output_names=["embeddings"],
                dynamo=True,
                dynamic_shapes=(dims,),  # of the only argument
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            if dynamic_size:
                raise ValueError(FIXED_SIZE) from error
            raise
    assert program is not None  # with dynamo=True
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the paths of this machine
    if preprocessing is not None:
        program.model.metadata_props["preprocessing"] = json.dumps(dict(preprocessing))
    program.save(path, external_data=False)


def check_other_size(module: nn.Module, images: Tensor) -> None:
    """Raises ValueError if a module does not accept images that are larger and not square."""
    larger = torch.nn.functional.pad(images, (0, 96, 0, 32))
    try:
        embed(module, larger)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"{FIXED_SIZE} ({first_line(error)})") from error


def onnx_embedder(path: Path) -> Embed:
    """Embeds images with an ONNX file, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["embeddings"], {"images": images.numpy()})[0])
