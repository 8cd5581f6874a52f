"""Peak memory of forward and backward of RecallAtKLoss, without embeddings and gradient."""

import argparse
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from lightning_recall.benchmarks.measure import example_batch, forward_backward, machine, peak_bytes, seconds
from lightning_recall.losses import RecallAtKLoss


def main(args: list[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.loss_memory", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4000, 16384], help="images in a batch, 4 per class")
    parser.add_argument("--dim", type=int, default=512, help="length of an embedding")
    parser.add_argument("--device", default="cpu", help="cpu (Linux) or cuda")
    options = parser.parse_args(args)
    device = torch.device(options.device)
    console = Console()
    console.print(f"{machine(device)}; D = {options.dim}, 4 images per class, clustered, fp32")
    table = Table("images", "extra, MiB", "N x N matrix, MiB", "seconds", title="Forward plus backward")
    forward_backward(RecallAtKLoss(), *example_batch(256, options.dim, "clustered", device))  # warm-up
    for size in options.sizes:
        step = partial(forward_backward, RecallAtKLoss(), *example_batch(size, options.dim, "clustered", device))
        extra = peak_bytes(step, device) - 4 * size * options.dim  # subtracts the returned gradient
        cells = f"{extra / 2**20:.0f}", f"{4 * size**2 / 2**20:,.0f}", f"{seconds(step, device):.2f}"
        table.add_row(f"{size:,}", *cells)
    console.print(table)


if __name__ == "__main__":
    main()
