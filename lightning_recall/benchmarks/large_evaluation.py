"""Memory and time of scoring embeddings on disk by several processes, and the time that all queries would take.

The embeddings are synthetic: unit centres of classes of 5 items, plus noise. Some queries are compared with a plain
search in float64. An interrupted run continues after the parts that are saved in the folder.
"""

import argparse
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from lightning_recall.benchmarks.measure import machine, resident_bytes
from lightning_recall.embedding_sets import MappedEmbeddings, map_embedding_set
from lightning_recall.metrics.scores_in_parts import drawn_queries, score_in_parts

CLASS_SIZE = 5
NOISE = 0.7  # of the centre's norm: the cosine within a class is about 0.67
SCORES, KS = ("recall", "map@r", "mrr"), (1, 10, 100)


def write_shards(folder: Path, size: int, dim: int, shard_size: int) -> None:
    """Writes missing shards of `size` embeddings in fp16; an existing shard is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, size, shard_size)):
        path = folder / f"shard-00-{number:05}.safetensors"
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(number)
        ids = torch.arange(start, min(start + shard_size, size))
        centres = torch.randn(len(ids) // CLASS_SIZE + 2, dim, generator=generator)
        labels = ids // CLASS_SIZE
        embeddings = centres[labels - labels[0]] + NOISE * torch.randn(len(ids), dim, generator=generator)
        unfinished = folder / f"unfinished-{path.name}"
        save_file({"embeddings": F.normalize(embeddings).half(), "ids": ids, "labels": labels}, unfinished)
        unfinished.replace(path)


class PeakAnonymousMemory:
    """Measures the peak of a process's anonymous memory: without the pages of mapped files, which can be dropped."""

    def __init__(self) -> None:
        self.peak = resident_bytes("RssAnon")
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.sample)

    def sample(self) -> None:
        """Reads it every 20 ms."""
        while not self.ended.wait(0.02):
            self.read()

    def read(self) -> None:
        """Updates the peak."""
        self.peak = max(self.peak, resident_bytes("RssAnon"))

    def __enter__(self) -> "PeakAnonymousMemory":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.read()  # of a search that took less than 20 ms


def score(rank: int, options: argparse.Namespace, reports: "multiprocessing.Queue[Any]") -> None:
    """Process `rank`: scores its share of the queries, and reports the seconds and its peak of anonymous memory."""
    torch.set_num_threads(options.threads)
    meeting = f"file://{(options.folder / 'store').absolute()}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.processes)
    start = time.perf_counter()
    with PeakAnonymousMemory() as memory:
        before = memory.peak
        items = map_embedding_set(options.folder / "embeddings")
        assert items.labels is not None  # write_shards has written them
        is_query = drawn_queries(len(items.ids), None, options.queries)
        results = options.folder / f"results-{options.queries}-{options.part_size}"
        arguments: dict[str, Any] = {"part_size": options.part_size, "results": results}
        scores = score_in_parts(items.pieces, items.labels, is_query, scores=SCORES, ks=KS, **arguments)
    reports.put((time.perf_counter() - start, before, memory.peak, scores))
    torch.distributed.destroy_process_group()


def run_processes(options: argparse.Namespace) -> list[tuple[float, int, int, dict[str, float]]]:
    """Seconds, anonymous bytes before, their peak, and scores of each process."""
    (options.folder / "store").unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")  # a forked process would count the memory of this one
    reports = context.Queue()
    processes = [context.Process(target=score, args=(rank, options, reports)) for rank in range(options.processes)]
    for process in processes:
        process.start()
    found = [reports.get() for _ in processes]
    for process in processes:
        process.join()
    return found


def reference_ranks(items: MappedEmbeddings, queries: list[int]) -> list[int]:
    """Rank of each query's first relevant item, by float64 products with one shard after the other."""
    assert items.labels is not None
    labels = items.labels.numpy()
    starts = np.cumsum([0, *(len(piece) for piece in items.pieces)])

    def unit(part: Any) -> Any:
        values = np.asarray(part, dtype=np.float64)
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    blocks = [
        (start + first, piece[first : first + 100_000])
        for start, piece in zip(starts, items.pieces, strict=False)
        for first in range(0, len(piece), 100_000)
    ]
    where = np.searchsorted(starts, queries, side="right") - 1
    vectors = unit([np.asarray(items.pieces[n][q - starts[n]]) for n, q in zip(where, queries, strict=True)])
    best = np.full(len(queries), -np.inf)
    for start, block in blocks:  # the most similar item of the query's class
        relevant = labels[start : start + len(block)] == labels[queries][:, None]
        relevant &= np.arange(start, start + len(block)) != np.array(queries)[:, None]
        if relevant.any():
            best = np.maximum(best, np.where(relevant, vectors @ unit(block).T, -np.inf).max(1))
    ahead = np.zeros(len(queries), dtype=int)
    for start, block in blocks:
        other = labels[start : start + len(block)] != labels[queries][:, None]
        ahead += (other & (vectors @ unit(block).T >= best[:, None])).sum(1)
    return [int(count) + 1 for count in ahead]


def check_ranks(options: argparse.Namespace) -> int:
    """Compares the ranks of some queries with the reference; returns how many.

    Raises:
        ValueError: if a rank differs.
    """
    results = options.folder / f"results-{options.queries}-{options.part_size}"
    parts = [dict(np.load(file)) for file in sorted(results.glob("part-*.npz"))]
    queries, mrr = (np.concatenate([part[name] for part in parts]) for name in ("queries", "mrr"))
    chosen = np.linspace(0, len(queries) - 1, min(options.check, len(queries))).astype(int)
    expected = reference_ranks(map_embedding_set(options.folder / "embeddings"), queries[chosen].tolist())
    actual = np.rint(1 / mrr[chosen]).astype(int).tolist()
    if actual != expected:
        raise ValueError(f"The ranks {actual} differ from those of the reference, {expected}.")
    return len(chosen)


def print_tables(console: Console, options: argparse.Namespace, left: int) -> None:
    """Runs the processes, and prints what was measured and what follows by arithmetic."""
    found = run_processes(options)
    time_taken, scores = max(report[0] for report in found), found[0][3]
    before, peak = max(report[1] for report in found), max(report[2] for report in found)
    size = options.items * options.dim * 2
    table = Table(title=f"{options.items:,} x {options.dim} in fp16 on disk, {size / 2**20:,.0f} MiB", min_width=60)
    rows = {
        "queries, searched now": f"{options.queries:,}, {left:,}",
        "processes, threads of each": f"{options.processes}, {options.threads}",
        "seconds": f"{time_taken:.1f}",
        "anonymous memory of a process, MiB: start, peak": f"{before / 2**20:,.0f}, {peak / 2**20:,.0f}",
        **{name: f"{100 * value:.2f} %" for name, value in scores.items()},
    }
    if left:
        hours = time_taken * options.items / left / 3600
        rows["all queries at this speed (arithmetic), hours"] = f"{hours:,.1f}"
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def main(args: list[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.large_evaluation", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the embeddings and results; not deleted")
    parser.add_argument("--items", type=int, default=10_000_000, help="number of items, all in the gallery")
    parser.add_argument("--dim", type=int, default=64, help="length of an embedding")
    parser.add_argument("--shard-size", type=int, default=500_000, help="items in a file, a multiple of 5")
    parser.add_argument("--queries", type=int, default=2000, help="number of queries, drawn at random")
    parser.add_argument("--part-size", type=int, default=500, help="queries that are searched and saved at a time")
    parser.add_argument("--processes", type=int, default=2, help="number of processes")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--check", type=int, default=0, help="queries to compare with a search in float64")
    options = parser.parse_args(args)
    console = Console()
    console.print(machine(torch.device("cpu")))
    write_shards(options.folder / "embeddings", options.items, options.dim, options.shard_size)
    saved = len(list((options.folder / f"results-{options.queries}-{options.part_size}").glob("part-*.npz")))
    print_tables(console, options, max(options.queries - saved * options.part_size, 0))
    if options.check:
        console.print(f"Ranks of {check_ranks(options)} queries are equal to those of a search in float64.")


if __name__ == "__main__":
    main()
