"""Cost of a chunked step: time and memory compared with a whole-batch step, and memory by batch size."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_recall.benchmarks.measure import interleaved_times, machine, peak_bytes, peak_tensor_bytes
from lightning_recall.losses import RecallAtKLoss
from lightning_recall.memory_allocation import keep_freed_memory
from lightning_recall.models import ImageEmbedder
from lightning_recall.recompute import chunked_forward


def main(args: list[str] | None = None) -> None:
    """Prints two tables and, with --plot, plots the second."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.recompute", description=__doc__)
    parser.add_argument("--backbone", default="resnet18", help="timm model name; the weights are random")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--chunk-size", type=int, default=32, help="images in one pass of the network")
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 2, 32], help="chunks in a batch")
    parser.add_argument("--compare-chunks", type=int, default=8, help="chunks in the batch of the first table")
    parser.add_argument("--repeats", type=int, default=5, help="number of rounds; the median is reported")
    parser.add_argument("--device", default="cpu", help="cpu (Linux) or cuda")
    parser.add_argument("--plot", type=Path, help="PNG file for the plot of the memory")
    options = parser.parse_args(args)
    device = torch.device(options.device)
    torch.manual_seed(0)
    model = ImageEmbedder(options.backbone, embedding_dim=128, pretrained=False, norm="batch").to(device).train()
    make_images = partial(random_images, options.image_size, device)
    console = Console()
    chunk_size = options.chunk_size
    console.print(f"{machine(device)}; {options.backbone}, {options.image_size} pixels, chunks of {chunk_size}, fp32")
    batch = make_images(options.compare_chunks * chunk_size)
    console.print(compare_with_whole_batch(model, batch, chunk_size, options.repeats))
    peaks = peaks_by_batch_size(model, make_images, chunk_size, options.chunks)
    console.print(growth_table(peaks, chunk_size))
    if options.plot:
        draw_growth(peaks, chunk_size).savefig(options.plot, dpi=110)


def random_images(size: int, device: torch.device, count: int) -> Tensor:
    """Images (count, 3, size, size) uint8."""
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, device=device)


def step(model: nn.Module, images: Tensor, chunk_size: int, keep_chunks: int = 1) -> None:
    """Embeds a batch in chunks and computes the gradient of the loss."""
    embeddings = chunked_forward(model, images, chunk_size, keep_chunks)
    labels = torch.arange(len(images), device=images.device) // 4
    RecallAtKLoss()(embeddings, labels).backward()
    model.zero_grad()


def compare_with_whole_batch(model: nn.Module, images: Tensor, chunk_size: int, repeats: int) -> Table:
    """A step with the whole batch, in chunks, and in chunks with the activations of half or all chunks kept."""
    chunks = -(-len(images) // chunk_size)
    steps: dict[str, Any] = {
        "whole batch at once": partial(step, model, images, len(images)),
        "in chunks": partial(step, model, images, chunk_size),
        f"in chunks, keep_chunks={chunks // 2}": partial(step, model, images, chunk_size, max(chunks // 2, 1)),
        f"in chunks, keep_chunks={chunks}": partial(step, model, images, chunk_size, chunks),
    }
    times = interleaved_times(list(steps.values()), images.device, repeats)
    table = Table("step", "seconds", "ratio", "peak, MiB", title=f"{len(images):,} images")
    for (name, function), time in zip(steps.items(), times, strict=True):
        memory = peak_bytes(function, images.device) / 2**20
        table.add_row(name, f"{time:.2f}", f"{time / times[0]:.2f}", f"{memory:,.0f}")
    return table


def peaks_by_batch_size(
    model: nn.Module, make_images: Any, chunk_size: int, chunks: list[int]
) -> dict[int, tuple[float, float]]:
    """Tensor memory and process memory of a step in MiB, without model and images, for each number of chunks."""
    peaks = {}
    for count in chunks:
        batch = make_images(count * chunk_size)
        run = partial(step, model, batch, chunk_size)
        run()
        # the batch is also counted, because the step creates views of it
        tensors = peak_tensor_bytes(run) - batch.nbytes
        peaks[count] = tensors / 2**20, peak_bytes(run, batch.device) / 2**20
    return peaks


def growth_table(peaks: dict[int, tuple[float, float]], chunk_size: int) -> Table:
    """The peaks, and their ratios to the first."""
    table = Table("chunks", "images", "tensors, MiB", "ratio", "process, MiB", "ratio", title="Peak of a chunked step")
    first = next(iter(peaks.values()))
    for count, memory in peaks.items():
        pairs = zip(memory, first, strict=True)
        cells = [cell for peak, base in pairs for cell in (f"{peak:,.0f}", f"{peak / base:.2f}")]
        table.add_row(f"{count}", f"{count * chunk_size:,}", *cells)
    return table


def draw_growth(peaks: dict[int, tuple[float, float]], chunk_size: int) -> Figure:
    """Plots peaks by batch size, and the extrapolated peak of a whole-batch step."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    counts = list(peaks)
    batches = [count * chunk_size for count in counts]
    tensors, process = zip(*peaks.values(), strict=True)
    axes.plot(batches, [tensors[0] * count / counts[0] for count in counts], "k:", label="whole batch (extrapolated)")
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
    keep_freed_memory()
    main()
