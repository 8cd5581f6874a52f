"""Exports a trained module, with the settings that turn an image file into its input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_recall.models import ExportReport, export_onnx, export_openvino, export_program
from lightning_recall.models.export.prepare import new_path
from lightning_recall.modules.preprocessing import SAVED
from lightning_recall.modules.retrieval import RetrievalModule

EXPORTS: dict[str, Callable[..., ExportReport]] = {
    ".onnx": export_onnx,
    ".pt2": export_program,
    ".xml": export_openvino,
}
"""suffix of the file -> the function that writes it"""
CHANNELS = {"RGB": 3, "L": 1}


def export_module(module: RetrievalModule, path: str | Path, half: bool = False) -> ExportReport:
    """Exports the embedder of a trained module to ONNX, `torch.export` or OpenVINO, and checks the file.

    The file takes images (B, C, size, size) uint8 as `module.preprocess` makes them, and holds its settings as JSON
    under "preprocessing"; `lightning_recall.pil_preprocessing.preprocess` applies them without torch. Test-time
    augmentation is not exported.

    Args:
        module: the module; it is not changed.
        path: path of the new file, ending with .onnx, .pt2 or .xml.
        half: float16 for weights, and for activations where the library computes in float16: see `export_onnx`,
            `export_program` and `export_openvino`.

    Returns:
        What was written, and its cosines to PyTorch.

    Raises:
        ValueError: for an existing file, another suffix, and a module whose preprocessing is unknown, code, or makes
            images of different sizes.
        ImportError: if a package is not installed that the format needs.
        RuntimeError: if the file's embeddings differ from PyTorch's, and with torch below 2.9.
    """
    check_new_file(path)
    settings = preprocessing_settings(module)
    return EXPORTS[Path(path).suffix](
        module.embedder, path, settings["size"], CHANNELS[settings["mode"]], half=half, preprocessing=settings
    )


def check_new_file(path: str | Path) -> None:
    """Raises ValueError for a path with another suffix than those of `EXPORTS`, and for an existing file."""
    suffix = Path(path).suffix
    if suffix not in EXPORTS:
        raise ValueError(
            f"{path}: the file's name must end with .onnx (ONNX), .pt2 (torch.export) or .xml (OpenVINO), got "
            f"{suffix or 'no suffix'}."
        )
    new_path(path, suffix)


def preprocessing_settings(module: RetrievalModule) -> dict[str, Any]:
    """The settings of `module.preprocess`, as plain values, with numbers for the sizes.

    Raises:
        ValueError: if they are unknown, code, or make images of different sizes.
    """
    transforms = module.image_transforms
    if transforms is None or transforms.eval_transform is not None:
        raise ValueError(
            "The module's preprocessing is unknown or code, which exported files do not hold: set "
            "module.image_transforms = lightning_recall.data.ImageTransforms(...) without eval_transform, or export "
            "module.embedder with export_onnx, export_program or export_openvino."
        )
    if transforms.longest_side is not None:
        raise ValueError(
            f"With longest_side={transforms.longest_side} images have different sizes, but an exported file takes one: "
            "set module.image_transforms with size and resize, or call export_onnx(module.embedder, ..., "
            "dynamic_size=True)."
        )
    resolved = transforms.for_model(None)
    return {name: getattr(resolved, name) for name in SAVED}
