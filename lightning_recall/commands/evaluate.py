"""`lightning-recall evaluate`: scores of embeddings on disk, with little memory and by several processes."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "embeddings",
        metavar="EMBEDDINGS",
        type=Path,
        help="folder of predict, or a .npz or .safetensors file",
    )
    parser.add_argument("--queries", type=int, metavar="NUMBER", help="search only a random sample of queries")
    parser.add_argument(
        "--scores", nargs="+", default=["recall", "map@r"], help="scores, such as recall, map@r, map or mrr"
    )
    parser.add_argument("--ks", nargs="+", type=int, default=[1, 10, 100], help="cut-offs of the scores")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="folder of the parts, from which an interrupted run continues",
    )
    parser.add_argument("--part-size", type=int, default=4096, help="queries that are searched and saved at a time")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


def run(arguments: argparse.Namespace) -> None:
    """Prints a table of the scores; under torchrun, the processes share the queries."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lightning_recall.embedding_sets import map_embedding_set
    from lightning_recall.metrics import score_in_parts
    from lightning_recall.metrics.scores import score_title
    from lightning_recall.metrics.scores_in_parts import drawn_queries

    items = map_embedding_set(arguments.embeddings)
    if items.labels is None:
        raise ValueError(
            f"{arguments.embeddings} has no labels, which say what is relevant: predict images with labels."
        )
    is_query = drawn_queries(len(items.ids), items.is_query, arguments.queries)
    # under torchrun, each process of a machine has a GPU of its own
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if arguments.device == "cuda" else arguments.device
    with _process_group() as rank:
        scores = score_in_parts(
            items.pieces,
            items.labels,
            is_query,
            items.is_gallery,
            items.groups,
            arguments.scores,
            arguments.ks,
            arguments.part_size,
            arguments.results,
            device,
        )
    if rank == 0:
        num_queries = len(items.ids) if is_query is None else int(is_query.sum())
        num_gallery = len(items.ids) if items.is_gallery is None else int(items.is_gallery.sum())
        title = f"{num_queries:,} queries, gallery of {num_gallery:,}, scores in %"
        table = Table("", title=title, min_width=len(title))
        for name in scores:
            table.add_column(score_title(name), justify="right")
        table.add_row(escape(arguments.embeddings.name), *(f"{100 * value:.2f}" for value in scores.values()))
        Console().print(table)


@contextmanager
def _process_group() -> Iterator[int]:
    """Joins the processes that torchrun started, if it did; yields the rank of this one."""
    import torch.distributed

    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        yield 0
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield torch.distributed.get_rank()
    finally:
        torch.distributed.destroy_process_group()
