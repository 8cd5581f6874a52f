"""Speed of loading: images decoded and augmented by workers, beside one process that does only this."""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from lightning_recall.benchmarks.measure import machine
from lightning_recall.data.image_files import ImageFiles, read_image
from lightning_recall.datamodules import ChunkLoader
from lightning_recall.samplers import ClassBalancedBatchSampler

SAMPLES = 4


def main(args: list[str] | None = None) -> None:
    """Prints two tables: the speed of the parts and of the loader, and the time to the first batch."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.loading", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the images are written, and kept")
    parser.add_argument("--side", type=int, default=400, help="height and width of the JPEG files, in pixels")
    parser.add_argument("--images", type=int, default=2000, help="number of files")
    parser.add_argument("--batch-size", type=int, default=1000, help="images in a batch")
    parser.add_argument("--chunk-size", type=int, default=100, help="images that a worker loads at a time")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of workers to try")
    given = parser.parse_args(args)
    torch.set_num_threads(1)  # as in a worker
    names = write_images(given.folder, given.images, given.side)
    data = ImageFiles(given.folder, names, np.arange(given.images) // SAMPLES)
    data = data.select(slice(None), training=True)
    console = Console()
    console.print(
        f"{machine(torch.device('cpu'))}; JPEG of {given.side} pixels to 224, batches of {given.batch_size:,}"
    )
    console.print(parts_and_loader(data, given.batch_size, given.chunk_size, given.workers))


def write_images(folder: Path, count: int, side: int) -> list[str]:
    """JPEG files with the detail of a photograph: noise at several scales. Those that are there are used again."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{side}_{number}.jpg" for number in range(count)]
    rng = np.random.default_rng(0)
    for name in names:
        if not (folder / name).exists():
            image = np.zeros((side, side, 3))
            for cells in (4, 16, 64, side):
                noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
                image += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) / cells**0.5
            Image.fromarray((image * 255 / image.max()).astype(np.uint8)).save(folder / name, quality=90)
    return names


def parts_and_loader(data: ImageFiles, batch_size: int, chunk_size: int, workers: list[int]) -> Table:
    """Images a second of decoding, augmenting, both, and of the loader; and when its first batch is there."""
    rows = range(min(batch_size, len(data)))
    decoded = [read_image(data.path(row)) for row in rows[:100]]
    decode = per_second(lambda: [read_image(data.path(row)) is None for row in rows], len(rows))
    augment = per_second(lambda: [data.transform(decoded[row % len(decoded)]) is None for row in rows], len(rows))
    both = per_second(lambda: [data[row] is None for row in rows], len(rows))
    table = Table("what", "images/s", "per process", "first batch, s")
    table.add_row("decode", f"{decode:,.0f}", "", "")
    table.add_row("augment", f"{augment:,.0f}", "", "")
    table.add_row("both, one process", f"{both:,.0f}", "1.00", f"{batch_size / both:.1f}")
    for number in workers:
        speed, first = loader_speed(data, batch_size, chunk_size, number)
        share = speed / (both * max(number, 1))
        table.add_row(f"loader, {number} workers", f"{speed:,.0f}", f"{share:.2f}", f"{first:.1f}")
    return table


def per_second(function: Callable[[], Any], count: int) -> float:
    """How many a second, the median of three rounds."""
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return count / statistics.median(times)


def loader_speed(data: ImageFiles, batch_size: int, chunk_size: int, workers: int) -> tuple[float, float]:
    """Images a second over three epochs after the first, and seconds from the start to the first batch."""
    sampler = ClassBalancedBatchSampler(data.labels, batch_size, SAMPLES)
    loader = ChunkLoader(data, sampler, chunk_size, num_workers=workers, persistent_workers=workers > 0)
    start = time.perf_counter()
    epoch = iter(loader)
    next(epoch)
    first = time.perf_counter() - start
    list(epoch)
    start = time.perf_counter()
    images = sum(len(labels) for _ in range(3) for chunks in loader for _, labels in chunks)
    return images / (time.perf_counter() - start), first


if __name__ == "__main__":
    main()
