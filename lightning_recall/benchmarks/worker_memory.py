"""Memory of loader workers with large batches: loading chunks compared with loading whole batches."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lightning_recall.benchmarks.measure import PROC_SELF, resident_bytes
from lightning_recall.data.chunk_loader import ChunkLoader
from lightning_recall.samplers import ClassBalancedBatchSampler


class ConstantImages(Dataset[tuple[Tensor, Tensor]]):
    """Constant images (3, size, size) uint8, 4 per class; each worker writes its memory growth to a file."""

    def __init__(self, count: int, size: int, folder: Path) -> None:
        self.count, self.size, self.folder = count, size, folder
        self.before = 0  # memory of the worker at start, in bytes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An image and its label."""
        if worker := get_worker_info():
            if not self.before:
                (PROC_SELF / "clear_refs").write_text("5")
                self.before = resident_bytes("VmRSS")
            (self.folder / f"{worker.id}").write_text(str(resident_bytes("VmHWM") - self.before))
        return torch.full((3, self.size, self.size), index % 256, dtype=torch.uint8), torch.tensor(index // 4)


def main(args: list[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.worker_memory", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4000, help="images, 4 per class")
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--chunk-size", type=int, default=128, help="images per chunk, loaded by one worker")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--folder", type=Path, required=True, help="an existing folder for the workers' measurements")
    options = parser.parse_args(args)
    data = ConstantImages(2 * options.workers * options.batch_size, options.image_size, options.folder)
    sampler = ClassBalancedBatchSampler(np.arange(len(data)) // 4, options.batch_size, 4)
    loaders: dict[str, Any] = {
        f"chunks of {options.chunk_size}": ChunkLoader(data, sampler, options.chunk_size, num_workers=options.workers),
        "whole batches": DataLoader(data, batch_sampler=sampler, num_workers=options.workers),
    }
    table = Table("loader", "batch, MiB", "peak of a worker, MiB", title=f"{options.workers} workers")
    for name, loader in loaders.items():
        for _ in loader:
            pass
        peak = max(int((options.folder / str(number)).read_text()) for number in range(options.workers))
        batch = options.batch_size * 3 * options.image_size**2
        table.add_row(name, f"{batch / 2**20:,.0f}", f"{peak / 2**20:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
