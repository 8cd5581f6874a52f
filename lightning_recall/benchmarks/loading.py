"""Speed of loading: the training loader compared with its bare parts in as many processes, and with torch's DataLoader.

The bare parts are a loop that opens, decodes and transforms the same files, and transports nothing.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from lightning_recall.benchmarks.measure import machine
from lightning_recall.data import ChunkLoader, ImageFiles, ImageTransforms
from lightning_recall.samplers import ClassBalancedBatchSampler

SAMPLES_PER_CLASS = 4
REDUCING_GAPS = {"full": None, "reduced": ImageTransforms().reducing_gap}
START_METHODS = ("fork", "forkserver", "spawn")


class PlainFiles(Dataset[tuple[Tensor, int]]):
    """The least that a data set of image files does: opens, decodes and transforms."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths = paths
        crop = v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True)
        self.transform: nn.Module = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image and label."""
        with Image.open(self.paths[index]) as image:
            image.load()
        return self.transform(tv.pil_to_tensor(image)), index // SAMPLES_PER_CLASS


def main(args: list[str] | None = None) -> None:
    """Prints one table of speeds and one of the time to the first batch of the second epoch."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.loading", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the drawn images, reused by later runs")
    parser.add_argument("--photographs", type=Path, nargs="*", default=[], help="folders of JPEG files, measured too")
    parser.add_argument("--sizes", nargs="+", default=["500x375", "2000x1500"], help="of the drawn images, in pixels")
    parser.add_argument("--image-size", type=int, default=224, help="of the crops, in pixels")
    parser.add_argument("--images", type=int, default=2048, help="images in an epoch")
    parser.add_argument("--batch-size", type=int, default=512, help="images in a batch")
    parser.add_argument("--chunk-size", type=int, default=128, help="images per chunk, loaded by one worker")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each loader, in turns")
    parser.add_argument("--start-methods", nargs="*", default=START_METHODS, choices=START_METHODS)
    options = parser.parse_args(args)
    torch.set_num_threads(1)  # as in a worker
    kinds = {size: draw_images(options.folder, *map(int, size.split("x"))) for size in options.sizes}
    kinds |= {folder.name: sorted(folder.rglob("*.jpg"))[::7] for folder in options.photographs}
    console = Console()
    console.print(
        f"{machine(torch.device('cpu'))}; {options.workers} workers, random crops to {options.image_size} pixels, "
        f"chunks of {options.chunk_size}"
    )
    table = Table("images", "decoding", "bare parts, images/s", "plain DataLoader", "ChunkLoader", "of the bare parts")
    for name, files in kinds.items():
        for row in speed_rows(files, options):
            table.add_row(name, *row)
    console.print(table)
    console.print(start_table(next(iter(kinds.values())), options))


def draw_images(folder: Path, width: int, height: int, count: int = 40) -> list[Path]:
    """Writes JPEG files with noise at several scales, as detailed as photographs. Existing files are reused."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{width}x{height}_{number}.jpg" for number in range(count)]
    rng = np.random.default_rng(0)
    for path in paths:
        if not path.exists():
            image = np.zeros((height, width, 3))
            for cells in (4, 16, 64, 256):
                noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
                image += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / cells**0.5
            Image.fromarray((image * 255 / image.max()).astype(np.uint8)).save(path, quality=90)
    return paths


def chunk_loader(paths: list[Path], gap: float | None, options: argparse.Namespace, **kwargs: Any) -> ChunkLoader:
    """The training loader of the library."""
    transforms = ImageTransforms(size=options.image_size, reducing_gap=gap)
    labels = np.arange(len(paths)) // SAMPLES_PER_CLASS
    data = ImageFiles("", [str(path) for path in paths], labels, transforms=transforms, training=True)
    sampler = ClassBalancedBatchSampler(labels, options.batch_size, SAMPLES_PER_CLASS)
    return ChunkLoader(data, sampler, options.chunk_size, num_workers=options.workers, **kwargs)


def speed_rows(files: list[Path], options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Images per second of the bare parts and the loaders, with full and with reduced decoding; medians."""
    paths = (files * options.images)[: options.images]
    plain = PlainFiles(paths, options.image_size)
    settings: dict[str, Any] = {"num_workers": options.workers, "persistent_workers": True}
    plain_loader: DataLoader[Any] = DataLoader(plain, options.chunk_size, shuffle=True, **settings)
    functions: list[Callable[[], float]] = [
        lambda: bare_speed(plain, options.workers),
        lambda: loader_speed(plain_loader),
    ]
    for gap in REDUCING_GAPS.values():
        loader = chunk_loader(paths, gap, options, persistent_workers=True)
        functions.append(lambda loader=loader: loader_speed(chunk for chunks in loader for chunk in chunks))  # type: ignore[misc]  # mypy cannot infer the default's type
    for function in functions[1:] * 2:
        function()  # starts the workers; their memory settles in the second epoch
    rounds = [[function() for function in functions] for _ in range(options.rounds)]
    bare, plain_speed, *ours = (statistics.median(column) for column in zip(*rounds, strict=True))
    return [
        (decoding, f"{bare:,.0f}", f"{plain_speed:,.0f}", f"{speed:,.0f}", f"{speed / bare:.2f}")
        for decoding, speed in zip(REDUCING_GAPS, ours, strict=True)
    ]


def bare_speed(data: PlainFiles, processes: int) -> float:
    """Images per second of a loop over the data in several processes at the same time."""
    context = multiprocessing.get_context("fork")
    barrier, times = context.Barrier(processes), context.SimpleQueue()
    workers = [context.Process(target=load_all, args=(data, n, processes, barrier, times)) for n in range(processes)]
    for worker in workers:
        worker.start()
    spans = [times.get() for _ in workers]
    for worker in workers:
        worker.join()
    duration: float = max(end for _, end in spans) - min(start for start, _ in spans)
    return len(data) / duration


def load_all(data: PlainFiles, number: int, processes: int, barrier: Any, times: Any) -> None:
    """Loads every n-th item in one of n processes, and reports when it started and ended."""
    torch.set_num_threads(1)
    barrier.wait()
    start = time.perf_counter()
    for index in range(number, len(data), processes):
        data[index]
    times.put((start, time.perf_counter()))


def loader_speed(batches: Iterable[Any]) -> float:
    """Images per second of one epoch."""
    start = time.perf_counter()
    count = sum(len(labels) for _, labels in batches)
    return count / (time.perf_counter() - start)


def start_table(files: list[Path], options: argparse.Namespace) -> Table:
    """Seconds from the end of the first epoch to the first batch of the second."""
    table = Table("start method", "new workers, s", "persistent workers, s", title="First batch of the second epoch")
    paths = (files * options.images)[: options.images]
    for method in options.start_methods:
        row = []
        for persistent in (False, True):
            settings = {"multiprocessing_context": method, "persistent_workers": persistent}
            loader = chunk_loader(paths, REDUCING_GAPS["reduced"], options, **settings)
            for _ in loader:
                pass
            start = time.perf_counter()
            next(iter(loader))
            row.append(f"{time.perf_counter() - start:.2f}")
        table.add_row(method, *row)
    return table


if __name__ == "__main__":
    main()
