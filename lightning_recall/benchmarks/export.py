"""Exports a network of each family: cosines to PyTorch, size of the file, and speed on the CPU."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

from lightning_recall.benchmarks.measure import interleaved_times, machine
from lightning_recall.models import ImageEmbedder, export_onnx, export_openvino, export_program
from lightning_recall.models.export.onnx_file import onnx_embedder
from lightning_recall.models.export.openvino_file import openvino_embedder
from lightning_recall.models.export.parity import Embed, ExportReport, between_images, embed, smallest_cosine
from lightning_recall.models.export.prepare import example_images
from lightning_recall.models.export.torch_program import program_embedder

CPU = torch.device("cpu")
EMBEDDING_DIM = 128
FORMATS: dict[str, tuple[Callable[..., ExportReport], str, Callable[[Path], Embed]]] = {
    "ONNX": (export_onnx, ".onnx", onnx_embedder),
    "torch.export": (export_program, ".pt2", program_embedder),
    "OpenVINO": (export_openvino, ".xml", openvino_embedder),
}
"""format -> the function that writes it, suffix, the function that loads it"""


class Family(NamedTuple):
    """A network as timm builds it, its pooling, and its arguments for images of another size."""

    backbone: str
    pooling: Any
    takes_size: bool = True


FAMILIES = {
    "ConvNet": Family("resnet18", "gem", False),
    "ViT": Family("vit_tiny_patch16_224", "token"),
    "Swin": Family("swin_tiny_patch4_window7_224", "gem"),
    "ConvNeXt": Family("convnext_atto", "gem", False),
    "DINOv2": Family("vit_small_patch14_dinov2", "token"),
}


class Result(NamedTuple):
    """One exported file: its report, and its seconds for a batch divided by PyTorch's."""

    family: str
    format: str
    report: ExportReport
    relative_time: float


def main(args: list[str] | None = None) -> None:
    """Prints a table with a row for each family, format and precision."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.export", description=__doc__)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--size", type=int, default=224, help="height and width of the images, a multiple of 56")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many batches of 7 images counts")
    options = parser.parse_args(args)
    console = Console()
    console.print(f"{machine(CPU)}; random weights, {options.size} x {options.size} pixels, batches of 7")
    results: list[Result] = []
    for family in tqdm(options.families, desc="families", leave=False, disable=None):
        results += measure_family(family, options.size, options.repeats)
    console.print(results_table(results))


def random_embedder(family: Family, size: int) -> ImageEmbedder:
    """An embedder with random weights, whose embeddings differ between images."""
    arguments = {"img_size": size} if family.takes_size else {}
    embedder = ImageEmbedder(
        family.backbone, EMBEDDING_DIM, pretrained=False, pooling=family.pooling, backbone_kwargs=arguments
    )
    spread_weights(embedder.backbone)
    return embedder.eval()


def spread_weights(backbone: nn.Module) -> None:
    """Larger random weights than timm's, so that an untrained network embeds different images differently."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=2 / parameter[0].numel() ** 0.5, generator=generator)
            elif name.endswith(("gamma", "ls1", "ls2")):  # LayerScale, of 1e-6 to 1e-5
                parameter.fill_(1.0)


def measure_family(name: str, size: int, repeats: int) -> list[Result]:
    """Exports one network in all formats and precisions, and measures the files alternately with PyTorch."""
    embedder = random_embedder(FAMILIES[name], size)
    images = example_images(size, 3)
    reports: list[tuple[str, ExportReport]] = []
    runs: list[Embed] = [lambda batch: embed(embedder, batch)]
    with tempfile.TemporaryDirectory() as folder:
        for title, (export, suffix, load) in FORMATS.items():
            for half in (False, True):
                report = export(embedder, Path(folder, f"{half}{suffix}"), size, half=half)
                reports.append((title, report))
                runs.append(load(report.path))
        if "OpenVINO" in FORMATS:
            file = Path(folder, "False.xml")
            runs.append(openvino_embedder(file, "bf16"))
            reports.append(("OpenVINO", in_bfloat16(file, runs[-1], images, embed(embedder, images))))
        times = interleaved_times([on(images, run) for run in runs], CPU, repeats)
    return [Result(name, *row, time / times[0]) for row, time in zip(reports, times[1:], strict=True)]


def in_bfloat16(path: Path, run: Embed, images: Tensor, expected: Tensor) -> ExportReport:
    """Report of a float32 file that OpenVINO runs in bfloat16, its default on CPUs with instructions for it."""
    one_by_one = torch.cat([run(image) for image in torch.split(images, 1)])
    cosines = smallest_cosine(one_by_one, expected), smallest_cosine(run(images), expected)
    num_bytes = sum(file.stat().st_size for file in (path, path.with_suffix(".bin")))
    return ExportReport(path, "run in bfloat16", num_bytes, *cosines, between_images(expected))


def on(images: Tensor, run: Embed) -> Callable[[], Tensor]:
    """A call of `run` with these images."""
    return lambda: run(images)


def results_table(results: list[Result]) -> Table:
    """One row for each result; the speed is PyTorch's time divided by that of the file."""
    columns = ("family", "format", "precision", "1 - cosine at 1", "1 - cosine at 7", "between images", "MB", "speed")
    table = Table(*columns, caption="speed: images per second, divided by PyTorch's in float32")
    for family, title, report, relative_time in results:
        cosines = (f"{1 - cosine:.0e}" for cosine in (report.cosine_1, report.cosine_7))
        sizes = f"{report.between_images:.2f}", f"{report.num_bytes / 1e6:.1f}"
        table.add_row(family, title, report.precision, *cosines, *sizes, f"{1 / relative_time:.2f}")
    return table


if __name__ == "__main__":
    main()
