"""Cost of a chunked step: time and memory beside a plain step over the whole batch, and while the batch grows."""

import argparse
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_recall.benchmarks.measure import interleaved, machine, peak_bytes, peak_tensor_bytes
from lightning_recall.losses import RecallAtKLoss
from lightning_recall.models import ImageEmbedder
from lightning_recall.recompute import chunked_forward


def main(args: list[str] | None = None) -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.recompute", description=__doc__)
    parser.add_argument("--backbone", default="resnet18", help="of timm, with random weights")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--chunk-size", type=int, default=32, help="images in one pass")
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 2, 32], help="chunks in a batch")
    parser.add_argument("--compared", type=int, default=8, help="chunks of the batch that is beside a plain step")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median is shown")
    parser.add_argument("--device", default="cpu", help="cpu (Linux) or cuda")
    given = parser.parse_args(args)
    device = torch.device(given.device)
    torch.manual_seed(0)
    model = ImageEmbedder(given.backbone, embedding_dim=128, pretrained=False, norm="batch").to(device).train()
    images = partial(random_images, given.image_size, device)
    console = Console()
    console.print(f"{machine(device)}; {given.backbone}, {given.image_size} pixels, chunks of {given.chunk_size}, fp32")
    console.print(beside_plain(model, images(given.compared * given.chunk_size), given.chunk_size, given.repeats))
    console.print(while_growing(model, images, given.chunk_size, given.chunks))


def random_images(size: int, device: torch.device, count: int) -> Tensor:
    """Images (count, 3, size, size) uint8."""
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, device=device)


def step(model: nn.Module, images: Tensor, chunk_size: int, keep_last: int = 1) -> None:
    """Embeds a batch in chunks and computes the gradient of the loss."""
    embeddings = chunked_forward(model, images, chunk_size, keep_last)
    labels = torch.arange(len(images), device=images.device) // 4
    RecallAtKLoss()(embeddings, labels).backward()
    model.zero_grad()


def beside_plain(model: nn.Module, images: Tensor, chunk_size: int, repeats: int) -> Table:
    """One batch at once, in chunks, and in chunks of which half or all keep their activations."""
    chunks = -(-len(images) // chunk_size)
    ways: dict[str, Any] = {
        "whole batch at once": partial(step, model, images, len(images)),
        "in chunks": partial(step, model, images, chunk_size),
        f"in chunks, keep_last={chunks // 2}": partial(step, model, images, chunk_size, max(chunks // 2, 1)),
        f"in chunks, keep_last={chunks}": partial(step, model, images, chunk_size, chunks),
    }
    times = interleaved(list(ways.values()), images.device, repeats)
    table = Table("step", "seconds", "ratio", "peak, MiB", title=f"{len(images):,} images")
    for (name, way), time in zip(ways.items(), times, strict=True):
        memory = peak_bytes(way, images.device) / 2**20
        table.add_row(name, f"{time:.2f}", f"{time / times[0]:.2f}", f"{memory:,.0f}")
    return table


def while_growing(model: nn.Module, images: Any, chunk_size: int, chunks: list[int]) -> Table:
    """Peak memory of a step, beyond model and images, for more and more chunks: its tensors, and the process."""
    table = Table("chunks", "images", "tensors, MiB", "ratio", "process, MiB", "ratio", title="Peak of a chunked step")
    first = None
    for count in chunks:
        batch = images(count * chunk_size)
        way = partial(step, model, batch, chunk_size)
        way()
        tensors = peak_tensor_bytes(way) - batch.nbytes  # its chunks count as made in the step
        memory = tensors / 2**20, peak_bytes(way, batch.device) / 2**20
        first = first or memory
        cells = [cell for now, one in zip(memory, first, strict=True) for cell in (f"{now:,.0f}", f"{now / one:.2f}")]
        table.add_row(f"{count}", f"{len(batch):,}", *cells)
    return table


if __name__ == "__main__":
    main()
