"""Evaluation: time and memory of the exact search, beside the bare matrix product and faiss's IndexFlatIP, k = 1,001.

Ratios are to the product; MiB are those taken beyond the embeddings, which are clustered (class centres plus noise, 5
items a class) or random, of unit length.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_recall.benchmarks.measure import machine, peak_bytes, seconds
from lightning_recall.metrics.retrieval_scores import RetrievalScores
from lightning_recall.metrics.scores import AT_K, OVERALL
from lightning_recall.search.embedding_blocks import EmbeddingBlocks
from lightning_recall.search.ranks import block_shape
from lightning_recall.search.relevant_ranks import LabelledEmbeddings, rank_by_label

KS = (1, 10, 100, 1000)
SETS = {"recall@k": ("recall",), "all scores": (*AT_K, *OVERALL)}


def example(size: int, dim: int, kind: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and labels (N,), in random order."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randperm(size, generator=generator) // 5
    noise = torch.randn(size, dim, generator=generator)
    centres = torch.randn(size // 5 + 1, dim, generator=generator)
    embeddings = noise if kind == "random" else noise.mul_(3).add_(centres[labels])
    return F.normalize(embeddings, dim=1).to(device), labels.to(device)


def measured(way: Callable[[], Any], device: torch.device) -> tuple[float, int, Any]:
    """Seconds and bytes beyond what was held, of one call, and its result."""
    results: list[Any] = []

    def timed() -> None:
        results.append(seconds(lambda: results.append(way()), device))

    extra = peak_bytes(timed, device)
    found, time = results
    return time, extra, found


def bare_product(queries: Tensor, gallery: Tensor) -> None:
    """The matrix product that a search cannot avoid, in the same blocks, kept nowhere."""
    query_rows, gallery_rows = block_shape(queries.device)
    buffer = torch.empty(query_rows * gallery_rows, device=queries.device)
    for items in torch.split(gallery, gallery_rows):
        for rows in torch.split(queries, query_rows):
            torch.mm(rows, items.T, out=buffer[: len(rows) * len(items)].view(len(rows), len(items)))


def recall(embeddings: Tensor, labels: Tensor, scores: tuple[str, ...]) -> dict[str, Tensor]:
    """The metric, from update to compute."""
    metric = RetrievalScores(scores, KS)
    metric.update(embeddings, labels)
    return metric.search().means()


def recall_by_faiss(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Recall@k from the 1,001 nearest by IndexFlatIP, the query itself taken out."""
    import faiss

    rows, classes = embeddings.numpy(), labels.numpy()
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    _, found = index.search(rows, max(KS) + 1)
    right = (classes[found] == classes[:, None]) & (found != np.arange(len(rows))[:, None])
    first = np.where(right.any(1), right.argmax(1), 2 * max(KS))
    own = np.where(found == np.arange(len(rows))[:, None], 0, 1)  # places before the first right one, without itself
    before = np.take_along_axis(own.cumsum(1) - own, np.minimum(first, max(KS))[:, None], 1)[:, 0]
    return {f"recall@{k}": float((right.any(1) & (before < k)).mean()) for k in KS}


def leave_one_out(console: Console, size: int, dim: int, device: torch.device, with_faiss: bool) -> None:
    """One table: every item queries all the others."""
    title = f"{size:,} items query all the others, D = {dim}"
    table = Table("", "embeddings", "s", "ratio", "MiB", *(f"R@{k}" for k in KS), title=title)
    for kind in ("clustered", "random"):
        embeddings, labels = example(size, dim, kind, device)
        ways: dict[str, Any] = {"bare product": partial(bare_product, embeddings, embeddings)}
        ways |= {name: partial(recall, embeddings, labels, scores) for name, scores in SETS.items()}
        if with_faiss:
            ways["faiss"] = partial(recall_by_faiss, embeddings, labels)
        bare = 0.0
        for name, way in ways.items():
            time, extra, found = measured(way, device)
            bare = bare or time
            shown = [f"{100 * float(found[f'recall@{k}']):.2f}" for k in KS if found]
            table.add_row(name, kind, f"{time:.1f}", f"{time / bare:.2f}", f"{extra / 2**20:.0f}", *shown)
        table.add_section()
    console.print(table)


def large_gallery(console: Console, size: int, dim: int, device: torch.device) -> None:
    """One table: a memory-mapped gallery in half precision, for few queries and for many."""
    title = f"A gallery of {size:,} x {dim} fp16 on disk, whose mapped pages count as memory"
    table = Table("queries", "s", "ratio", "MiB", title=title)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gallery.npy"
        gallery = np.lib.format.open_memmap(path, "w+", np.float16, (size, dim))
        generator = np.random.default_rng(0)
        for start in range(0, size, 50_000):
            part = generator.standard_normal((min(50_000, size - start), dim), dtype=np.float32)
            gallery[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
        gallery.flush()
        gallery = np.load(path, mmap_mode="r")
        labels = torch.arange(size, device=device) // 5
        for count in (70, 10_000):
            rows = torch.from_numpy(np.ascontiguousarray(gallery[: 5 * count : 5])).float().to(device)
            queries = LabelledEmbeddings(
                EmbeddingBlocks(rows + 0.05 * torch.randn_like(rows), device=device),
                labels[: 5 * count : 5],
                -labels[:count] - 1,
            )
            searched = LabelledEmbeddings(
                EmbeddingBlocks(gallery, device=device), labels, torch.arange(size, device=device)
            )

            def search(queries: LabelledEmbeddings = queries, searched: LabelledEmbeddings = searched) -> None:
                list(rank_by_label(queries, searched, first=True))

            block = torch.randn(block_shape(device)[1], dim, device=device)
            bare = seconds(partial(bare_product, rows, block), device) * size / len(block)
            time, extra, _ = measured(search, device)
            table.add_row(f"{count:,}", f"{time:.1f}", f"{time / bare:.2f}", f"{extra / 2**20:.0f}")
    console.print(table)


def main(args: list[str] | None = None) -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.evaluation", description=__doc__)
    parser.add_argument("--size", type=int, default=60_502, help="items that query each other: SOP's test images")
    parser.add_argument("--gallery", type=int, default=1_000_000, help="items of the large gallery; 0: without it")
    parser.add_argument("--dim", type=int, default=512, help="length of an embedding")
    parser.add_argument("--faiss", action="store_true", help="also search by faiss: pip install faiss-cpu")
    parser.add_argument("--device", default="cpu", help="cpu (Linux) or cuda")
    given = parser.parse_args(args)
    device = torch.device(given.device)
    console = Console()
    console.print(machine(device))
    recall(*example(1000, given.dim, "random", device), SETS["all scores"])  # loads what is loaded once
    leave_one_out(console, given.size, given.dim, device, given.faiss)
    if given.gallery:
        large_gallery(console, given.gallery, given.dim, device)


if __name__ == "__main__":
    main()
