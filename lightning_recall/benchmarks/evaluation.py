"""Time and memory of the exact search, compared with the matrix product alone and faiss IndexFlatIP (k = 1,001).

Ratios are relative to the product; memory excludes the embeddings. Embeddings have unit length and are clustered (class
centres plus noise, 5 items per class) or random.
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
KINDS = ("clustered", "random")
SCORE_SETS = {"recall@k": ("recall",), "all scores": (*AT_K, *OVERALL)}


def random_embeddings(size: int, dim: int, kind: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and labels (N,), in random order."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randperm(size, generator=generator) // 5
    noise = torch.randn(size, dim, generator=generator)
    centres = torch.randn(size // 5 + 1, dim, generator=generator)
    embeddings = noise if kind == "random" else noise.mul_(3).add_(centres[labels])
    return F.normalize(embeddings, dim=1).to(device), labels.to(device)


def measure_call(function: Callable[[], Any], device: torch.device) -> tuple[float, int, Any]:
    """Runs a function once; returns its seconds, extra peak bytes and result."""
    results: list[Any] = []

    def timed() -> None:
        results.append(seconds(lambda: results.append(function()), device))

    extra = peak_bytes(timed, device)
    result, time = results
    return time, extra, result


def matrix_product(queries: Tensor, gallery: Tensor) -> None:
    """The matrix product of the search, in the same blocks, with the result discarded."""
    query_block_size, gallery_block_size = block_shape(queries.device)
    buffer = torch.empty(query_block_size * gallery_block_size, device=queries.device)
    for items in torch.split(gallery, gallery_block_size):
        for block in torch.split(queries, query_block_size):
            torch.mm(block, items.T, out=buffer[: len(block) * len(items)].view(len(block), len(items)))


def compute_scores(
    embeddings: Tensor, labels: Tensor, scores: tuple[str, ...], is_query: Tensor | None = None
) -> dict[str, Tensor]:
    """Updates a RetrievalScores metric and returns its scores; items that are no queries are the gallery."""
    metric = RetrievalScores(scores, KS)
    metric.update(embeddings, labels, None, is_query, None if is_query is None else ~is_query)
    return metric.search().means()


def recall_by_faiss(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Recall@k from the 1,001 nearest by IndexFlatIP, without the query itself."""
    import faiss

    embeddings_np, labels_np = embeddings.numpy(), labels.numpy()
    index = faiss.IndexFlatIP(embeddings_np.shape[1])
    index.add(embeddings_np)
    _, neighbors = index.search(embeddings_np, max(KS) + 1)  # (N, 1001)
    not_self = neighbors != np.arange(len(embeddings_np))[:, None]
    relevant = (labels_np[neighbors] == labels_np[:, None]) & not_self
    first_match_column = relevant.argmax(1)  # 0 if there is no match; masked below
    num_before = not_self.cumsum(1) - not_self  # neighbours before each one, without the query
    first_match_rank = 1 + np.take_along_axis(num_before, first_match_column[:, None], 1)[:, 0]
    return {f"recall@{k}": float((relevant.any(1) & (first_match_rank <= k)).mean()) for k in KS}


def leave_one_out(console: Console, size: int, dim: int, kind: str, device: torch.device, with_faiss: bool) -> None:
    """Prints the leave-one-out table: each item queries all others."""
    embeddings, labels = random_embeddings(size, dim, kind, device)
    functions: dict[str, Any] = {"matrix product": partial(matrix_product, embeddings, embeddings)}
    functions |= {name: partial(compute_scores, embeddings, labels, scores) for name, scores in SCORE_SETS.items()}
    if with_faiss:
        functions["faiss"] = partial(recall_by_faiss, embeddings, labels)
    title = f"Each of {size:,} {kind} items queries all others, D = {dim}"
    print_table(console, title, functions, device)


def query_and_gallery(console: Console, size: int, dim: int, kind: str, device: torch.device) -> None:
    """Prints the table of a gallery in memory, with a fourth as many queries that are not in it."""
    embeddings, labels = random_embeddings(size + size // 4, dim, kind, device)
    is_query = torch.arange(len(labels), device=device) < size // 4
    functions: dict[str, Any] = {"matrix product": partial(matrix_product, embeddings[is_query], embeddings[~is_query])}
    functions |= {
        name: partial(compute_scores, embeddings, labels, scores, is_query) for name, scores in SCORE_SETS.items()
    }
    title = f"{size // 4:,} {kind} queries and a gallery of {size:,}, D = {dim}"
    print_table(console, title, functions, device)


def print_table(console: Console, title: str, functions: dict[str, Any], device: torch.device) -> None:
    """Measures functions that return Recall@k or nothing; ratios are to the faster of two runs of the first."""
    table = Table("", "s", "ratio", "MiB", *(f"R@{k}" for k in KS), title=title)
    measured = {name: measure_call(function, device) for name, function in functions.items()}
    first, function = next(iter(functions.items()))
    product_time = min(measured[first][0], seconds(function, device))
    for name, (time, extra, result) in measured.items():
        recalls = [f"{100 * float(result[f'recall@{k}']):.2f}" for k in KS if result]
        table.add_row(name, f"{time:.1f}", f"{time / product_time:.2f}", f"{extra / 2**20:.0f}", *recalls)
    console.print(table)


def large_gallery(console: Console, size: int, dim: int, device: torch.device) -> None:
    """Prints the table of a memory-mapped gallery in half precision, for few queries and for many."""
    title = f"A gallery of {size:,} x {dim} fp16 on disk; memory includes the mapped pages"
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
            query_embeddings = torch.from_numpy(np.ascontiguousarray(gallery[: 5 * count : 5])).float().to(device)
            queries = LabelledEmbeddings(
                EmbeddingBlocks(query_embeddings + 0.05 * torch.randn_like(query_embeddings), device=device),
                labels[: 5 * count : 5],
                -labels[:count] - 1,
            )
            items = LabelledEmbeddings(
                EmbeddingBlocks(gallery, device=device), labels, torch.arange(size, device=device)
            )

            def search(queries: LabelledEmbeddings = queries, items: LabelledEmbeddings = items) -> None:
                list(rank_by_label(queries, items, only_first=True))

            block = torch.randn(block_shape(device)[1], dim, device=device)
            product_time = seconds(partial(matrix_product, query_embeddings, block), device) * size / len(block)
            time, extra, _ = measure_call(search, device)
            table.add_row(f"{count:,}", f"{time:.1f}", f"{time / product_time:.2f}", f"{extra / 2**20:.0f}")
    console.print(table)


def main(args: list[str] | None = None) -> None:
    """Prints a table for each kind of embeddings and of search."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.evaluation", description=__doc__)
    parser.add_argument("--size", type=int, default=60_502, help="number of items; default: SOP's test images")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="kinds of embeddings")
    parser.add_argument("--gallery", type=int, default=1_000_000, help="size of the large gallery; 0 skips it")
    parser.add_argument("--dim", type=int, default=512, help="length of an embedding")
    parser.add_argument("--faiss", action="store_true", help="also search with faiss (pip install faiss-cpu)")
    parser.add_argument("--device", default="cpu", help="cpu (Linux) or cuda")
    options = parser.parse_args(args)
    device = torch.device(options.device)
    console = Console()
    console.print(machine(device))
    warm_up = random_embeddings(1000, options.dim, "random", device)
    compute_scores(*warm_up, SCORE_SETS["all scores"])  # triggers lazy imports
    for kind in options.kinds:
        leave_one_out(console, options.size, options.dim, kind, device, options.faiss)
        query_and_gallery(console, options.size, options.dim, kind, device)
    if options.gallery:
        large_gallery(console, options.gallery, options.dim, device)


if __name__ == "__main__":
    main()
