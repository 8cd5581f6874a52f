"""Cost of a chunked step: time and memory beside a plain step over the whole batch, and while the batch grows."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_recall.benchmarks.measure import interleaved, machine, peak_bytes, peak_tensor_bytes
from lightning_recall.losses import RecallAtKLoss
from lightning_recall.models import ImageEmbedder
from lightning_recall.recompute import chunked_forward


def main(args: list[str] | None = None) -> None:
    """Prints two tables and, where asked, draws the second."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.recompute", description=__doc__)
    parser.add_argument("--backbone", default="resnet18", help="of timm, with random weights")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--chunk-size", type=int, default=32, help="images in one pass")
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 2, 32], help="chunks in a batch")
    parser.add_argument("--compared", type=int, default=8, help="chunks of the batch that is beside a plain step")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median is shown")
    parser.add_argument("--device", default="cpu", help="cpu (Linux) or cuda")
    parser.add_argument("--plot", type=Path, help="PNG file to draw the memory in")
    given = parser.parse_args(args)
    device = torch.device(given.device)
    torch.manual_seed(0)
    model = ImageEmbedder(given.backbone, embedding_dim=128, pretrained=False, norm="batch").to(device).train()
    images = partial(random_images, given.image_size, device)
    console = Console()
    console.print(f"{machine(device)}; {given.backbone}, {given.image_size} pixels, chunks of {given.chunk_size}, fp32")
    console.print(beside_plain(model, images(given.compared * given.chunk_size), given.chunk_size, given.repeats))
    peaks = while_growing(model, images, given.chunk_size, given.chunks)
    console.print(growth_table(peaks, given.chunk_size))
    if given.plot:
        draw_growth(peaks, given.chunk_size).savefig(given.plot, dpi=110)


def random_images(size: int, device: torch.device, count: int) -> Tensor:
    """Images (count, 3, size, size) uint8."""
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, device=device)


def step(model: nn.Module, images: Tensor, chunk_size: int, keep_chunks: int = 1) -> None:
    """Embeds a batch in chunks and computes the gradient of the loss."""
    embeddings = chunked_forward(model, images, chunk_size, keep_chunks)
    labels = torch.arange(len(images), device=images.device) // 4
    RecallAtKLoss()(embeddings, labels).backward()
    model.zero_grad()


def beside_plain(model: nn.Module, images: Tensor, chunk_size: int, repeats: int) -> Table:
    """One batch at once, in chunks, and in chunks of which half or all keep their activations."""
    chunks = -(-len(images) // chunk_size)
    ways: dict[str, Any] = {
        "whole batch at once": partial(step, model, images, len(images)),
        "in chunks": partial(step, model, images, chunk_size),
        f"in chunks, keep_chunks={chunks // 2}": partial(step, model, images, chunk_size, max(chunks // 2, 1)),
        f"in chunks, keep_chunks={chunks}": partial(step, model, images, chunk_size, chunks),
    }
    times = interleaved(list(ways.values()), images.device, repeats)
    table = Table("step", "seconds", "ratio", "peak, MiB", title=f"{len(images):,} images")
    for (name, way), time in zip(ways.items(), times, strict=True):
        memory = peak_bytes(way, images.device) / 2**20
        table.add_row(name, f"{time:.2f}", f"{time / times[0]:.2f}", f"{memory:,.0f}")
    return table


def while_growing(model: nn.Module, images: Any, chunk_size: int, chunks: list[int]) -> dict[int, tuple[float, float]]:
    """Peak MiB of a step, beyond model and images, for more and more chunks: of its tensors, and of the process."""
    peaks = {}
    for count in chunks:
        batch = images(count * chunk_size)
        way = partial(step, model, batch, chunk_size)
        way()
        tensors = peak_tensor_bytes(way) - batch.nbytes  # its chunks count as made in the step
        peaks[count] = tensors / 2**20, peak_bytes(way, batch.device) / 2**20
    return peaks


def growth_table(peaks: dict[int, tuple[float, float]], chunk_size: int) -> Table:
    """The peaks, and their ratios to the first."""
    table = Table("chunks", "images", "tensors, MiB", "ratio", "process, MiB", "ratio", title="Peak of a chunked step")
    first = next(iter(peaks.values()))
    for count, memory in peaks.items():
        cells = [cell for now, one in zip(memory, first, strict=True) for cell in (f"{now:,.0f}", f"{now / one:.2f}")]
        table.add_row(f"{count}", f"{count * chunk_size:,}", *cells)
    return table


def draw_growth(peaks: dict[int, tuple[float, float]], chunk_size: int) -> Figure:
    """The peaks over the batch, beside what a whole batch would take if its activations grew with it."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    counts = list(peaks)
    batches = [count * chunk_size for count in counts]
    tensors, process = zip(*peaks.values(), strict=True)
    axes.plot(batches, [tensors[0] * count / counts[0] for count in counts], "k:", label="all activations (computed)")
    axes.plot(batches, process, "s--", label="in chunks, process")
    axes.plot(batches, tensors, "o-", label="in chunks, tensors")
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axes.set_yscale("log")
    axes.set(xlabel="images in the batch", ylabel="peak of a step, MiB", title=f"Memory in chunks of {chunk_size}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
