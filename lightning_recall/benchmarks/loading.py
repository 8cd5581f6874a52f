"""Speed of loading: decoding and augmenting in workers, compared with a bare loop in one process."""

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
from lightning_recall.data.chunk_loader import ChunkLoader
from lightning_recall.data.image_files import ImageFiles, read_image
from lightning_recall.samplers import ClassBalancedBatchSampler

SAMPLES_PER_CLASS = 4


def main(args: list[str] | None = None) -> None:
    """Prints a table with the speed of decoding, augmenting and the loader, and the time to the first batch."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.loading", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the images, reused by later runs")
    parser.add_argument("--side", type=int, default=400, help="height and width of the JPEG files, in pixels")
    parser.add_argument("--images", type=int, default=2000, help="number of files")
    parser.add_argument("--batch-size", type=int, default=1000, help="images in a batch")
    parser.add_argument("--chunk-size", type=int, default=100, help="images per chunk, loaded by one worker")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of workers to compare")
    options = parser.parse_args(args)
    torch.set_num_threads(1)  # as in a worker
    names = write_images(options.folder, options.images, options.side)
    data = ImageFiles(options.folder, names, np.arange(options.images) // SAMPLES_PER_CLASS)
    data = data.select(slice(None), training=True)
    console = Console()
    console.print(
        f"{machine(torch.device('cpu'))}; JPEG of {options.side} pixels to 224, batches of {options.batch_size:,}"
    )
    console.print(loading_table(data, options.batch_size, options.chunk_size, options.workers))


def write_images(folder: Path, count: int, side: int) -> list[str]:
    """Writes JPEG files with noise at several scales, as detailed as photographs. Existing files are reused."""
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


def loading_table(data: ImageFiles, batch_size: int, chunk_size: int, workers: list[int]) -> Table:
    """Images per second for decoding, augmenting, both and the loader, and the time to the first batch."""
    indices = range(min(batch_size, len(data)))
    decoded = [read_image(data.path(index)) for index in indices[:100]]

    def rate(load: Callable[[int], Any]) -> float:
        return per_second(lambda: [load(index) is None for index in indices], len(indices))  # discards the images

    decode = rate(lambda index: read_image(data.path(index)))
    augment = rate(lambda index: data.transform(decoded[index % len(decoded)]))
    both = rate(lambda index: data[index])
    table = Table("step", "images/s", "per process", "first batch, s")
    table.add_row("decode", f"{decode:,.0f}", "", "")
    table.add_row("augment", f"{augment:,.0f}", "", "")
    table.add_row("both, one process", f"{both:,.0f}", "1.00", f"{batch_size / both:.1f}")
    for number in workers:
        speed, first = loader_speed(data, batch_size, chunk_size, number)
        efficiency = speed / (both * max(number, 1))
        table.add_row(f"loader, {number} workers", f"{speed:,.0f}", f"{efficiency:.2f}", f"{first:.1f}")
    return table


def per_second(function: Callable[[], Any], count: int) -> float:
    """Items per second, median of three rounds."""
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return count / statistics.median(times)


def loader_speed(data: ImageFiles, batch_size: int, chunk_size: int, workers: int) -> tuple[float, float]:
    """Images per second over three epochs after the first, and seconds from the start to the first batch."""
    sampler = ClassBalancedBatchSampler(data.labels, batch_size, SAMPLES_PER_CLASS)
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
