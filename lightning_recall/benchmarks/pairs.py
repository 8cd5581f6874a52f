"""Time and memory of exact operating points over all pairs, compared with the blockwise matrix product alone.

Embeddings of unit length: class centres plus noise, 5 items per class, in random order. `verify` needs two passes, each
with one product; memory excludes the embeddings.
"""

import argparse
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_recall.benchmarks.evaluation import measure_call, random_embeddings
from lightning_recall.benchmarks.measure import machine
from lightning_recall.metrics.verification import Verification, verify
from lightning_recall.search.count_ahead import block_pairs
from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.ranks import square_block_shape
from lightning_recall.search.relevant_ranks import LabelledEmbeddings


def matrix_product(embeddings: Tensor) -> None:
    """The similarities of all pairs in blocks, discarded."""
    blocks, shape = EmbeddingBlocks(embeddings, device=embeddings.device), square_block_shape(embeddings.device)
    buffer = torch.empty(shape[0] * shape[1], device=embeddings.device)
    order = torch.arange(len(blocks), device=embeddings.device)
    for _, part, _, items in block_pairs(blocks, blocks, order, shape, upper_half=True):
        torch.mm(part, items.T, out=buffer[: len(part) * len(items)].view(len(part), len(items)))


def operating_points(embeddings: Tensor, labels: Tensor) -> Verification:
    """TAR at FAR from 1e-1 to 1e-6, EER and ROC curve."""
    blocks = EmbeddingBlocks(embeddings, device=embeddings.device)
    return verify(LabelledEmbeddings(blocks, labels, torch.arange(len(labels), device=labels.device)))


def main(args: list[str] | None = None) -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.pairs", description=__doc__)
    parser.add_argument("--size", type=int, default=141_500, help="number of items; default: 10^10 pairs")
    parser.add_argument("--dim", type=int, default=64, help="length of an embedding")
    parser.add_argument("--device", default="cpu", help="cpu (Linux) or cuda")
    options = parser.parse_args(args)
    device = torch.device(options.device)
    console = Console()
    console.print(machine(device))
    embeddings, labels = random_embeddings(options.size, options.dim, "clustered", device)
    operating_points(embeddings[:1000], labels[:1000] // 10)  # loads libraries
    num_pairs = options.size * (options.size - 1) // 2
    table = Table("", "s", "ratio", "million pairs / s", "MiB", title=f"{num_pairs:,} pairs, D = {options.dim}")
    product_time, product_bytes, _ = measure_call(partial(matrix_product, embeddings), device)
    time, extra, result = measure_call(partial(operating_points, embeddings, labels), device)
    for name, duration, memory in (("matrix product", product_time, product_bytes), ("verify", time, extra)):
        ratio, speed = duration / product_time, num_pairs / duration / 1e6
        table.add_row(name, f"{duration:.1f}", f"{ratio:.2f}", f"{speed:.0f}", f"{memory / 2**20:.0f}")
    console.print(table)
    rates = ", ".join(f"{100 * p.true_accept_rate:.2f} at {f:g}" for f, p in result.at_false_accept_rate.items())
    console.print(f"TAR in % at FAR: {rates}; EER {100 * result.equal_error_rate:.3f} %")


if __name__ == "__main__":
    main()
