"""Compares an exported file with the PyTorch model that it was made from."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recall.models.export.prepare import prepared, unfinished

BATCH_SIZES = 1, 7
"""numbers of images that every exported file is run with"""
MIN_COSINE = {"float32": 0.99999, "float16": 0.999}
"""precision of the file -> smallest cosine to PyTorch in float32; bfloat16 would give 0.998 to 0.99998"""

Embed = Callable[[Tensor], Tensor]
"""images (B, C, H, W) uint8 -> embeddings (B, D)"""


class ExportReport(NamedTuple):
    """What was written, and how close it is to PyTorch in float32.

    Attributes:
        path: the file.
        precision: "float32" or "float16".
        num_bytes: size of the file, or of both files of OpenVINO.
        cosine_1: smallest cosine between the embeddings of PyTorch and of the file, one image at a time.
        cosine_7: the same for a batch of 7 images.
        between_images: smallest cosine between the embeddings of different images in PyTorch. If it is close to 1, all
            images have nearly the same embedding, and the other two cosines prove little.
    """

    path: Path
    precision: str
    num_bytes: int
    cosine_1: float
    cosine_7: float
    between_images: float


def write_and_compare(
    embedder: nn.Module,
    path: Path,
    images: Tensor,
    half: bool,
    write: Callable[[Path], None],
    load: Callable[[Path], Embed],
) -> ExportReport:
    """Writes a file, and compares its embeddings with those of PyTorch in float32; the file appears only then.

    Args:
        embedder: images (B, C, H, W) uint8 -> (B, D).
        path: path of the new file.
        images: images (7, C, H, W) uint8.
        half: whether the file is in float16.
        write: writes the file.
        load: loads the file with the library that will run it.

    Raises:
        RuntimeError: if the embeddings differ.
    """
    precision = "float16" if half else "float32"
    expected = embed(prepared(embedder), images)
    with unfinished(path) as file:
        write(file)
        cosines = check_parity(load(file), images, expected, precision)
        num_bytes = sum(written.stat().st_size for written in file.parent.iterdir())
    return ExportReport(path, precision, num_bytes, *cosines, between_images(expected))


def smallest_cosine(left: Tensor, right: Tensor) -> float:
    """Smallest cosine between rows of two tensors (B, D), in float64; NaN if one of them holds NaN."""
    return float(F.cosine_similarity(left.double(), right.double(), dim=1).min())


def embed(embedder: nn.Module, images: Tensor) -> Tensor:
    """Embeddings (B, D) without a graph."""
    with torch.no_grad():
        embeddings: Tensor = embedder(images)
    return embeddings


def check_parity(exported: Embed, images: Tensor, expected: Tensor, precision: str) -> tuple[float, float]:
    """Smallest cosine between an exported model and PyTorch, one image at a time and for the whole batch.

    Args:
        exported: runs the exported file.
        images: images (7, C, H, W) uint8.
        expected: embeddings (7, D) of PyTorch in float32.
        precision: "float32" or "float16".

    Raises:
        RuntimeError: if a cosine is below `MIN_COSINE`, or not a number.
    """
    one_by_one = torch.cat([exported(image) for image in torch.split(images, 1)])
    cosines = smallest_cosine(one_by_one, expected), smallest_cosine(exported(images), expected)
    for batch_size, cosine in zip(BATCH_SIZES, cosines, strict=True):
        if not cosine >= MIN_COSINE[precision]:
            raise RuntimeError(
                f"The exported model does not compute what PyTorch computes: at batches of {batch_size} the smallest "
                f"cosine is {cosine:.6f}, below {MIN_COSINE[precision]} for {precision}; nothing was written."
                + (" Export in float32." if precision == "float16" else "")
            )
    return cosines


def between_images(embeddings: Tensor) -> float:
    """Smallest cosine between two rows of embeddings (B, D)."""
    unit = F.normalize(embeddings.double(), dim=1)
    return float((unit @ unit.T).min())
