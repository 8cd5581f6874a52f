"""Exports an embedder with its preprocessing as a program of `torch.export`."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_recall.models.export.parity import Embed, ExportReport, embed, write_and_compare
from lightning_recall.models.export.prepare import check_torch, example_images, new_path, prepared


def export_program(
    embedder: nn.Module,
    path: str | Path,
    image_size: int | tuple[int, int],
    channels: int = 3,
    half: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Writes an embedder as a program of `torch.export`, which runs without this package, and checks the file.

    `torch.export.load(path).module()` maps images (B, C, H, W) uint8 to embeddings (B, D) float32 of unit norm; the
    batch size is dynamic. The program includes scaling to [0, 1] and normalisation, but not resizing and cropping to
    H x W: `preprocessing` is stored for that. LoRA matrices are merged. The loaded program then embeds the same images
    as PyTorch, in batches of 1 and of 7.

    Args:
        embedder: images (B, C, H, W) uint8 -> (B, D); exported in evaluation mode; the embedder itself is not changed.
        path: path of the new file, ending with .pt2.
        image_size: H and W, or one number for both.
        channels: number of image channels.
        half: float16 for weights and activations, which halves the file; torch computes in float16 on GPUs and on CPUs.
        preprocessing: settings for `lightning_recall.pil_preprocessing.preprocess`, stored as JSON in the extra file
            "preprocessing".

    Returns:
        What was written, and its cosines to PyTorch.

    Raises:
        ValueError: for an existing file, another suffix, and images that the embedder does not accept.
        RuntimeError: if the file's embeddings differ from PyTorch's, and with torch below 2.9.
    """
    check_torch()
    path = new_path(path, ".pt2")
    images = example_images(image_size, channels)

    def write(file: Path) -> None:
        write_program(prepared(embedder, half), file, images, preprocessing)

    return write_and_compare(embedder, path, images, half, write, program_embedder)


def write_program(module: nn.Module, path: Path, images: Tensor, preprocessing: Mapping[str, Any] | None) -> None:
    """Writes a module in evaluation mode; images (B, C, H, W) uint8 are an example of its input."""
    dims = ({0: torch.export.Dim("batch")},)  # of the only argument
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # internal warnings of the exporter
        program = torch.export.export(module, (images[:2],), dynamic_shapes=dims)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # holds the paths of this machine
        extra = {} if preprocessing is None else {"preprocessing": json.dumps(dict(preprocessing))}
        torch.export.save(program, path, extra_files=extra)


def program_embedder(path: Path) -> Embed:
    """Embeds images with a program of `torch.export`."""
    program = torch.export.load(path).module()
    return lambda images: embed(program, images)
