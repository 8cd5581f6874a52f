"""`lightning-recall sizes`: recall against bytes of stored embeddings."""

import math
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_recall.compression import SizeRow

PLOT_SUFFIXES = (".png", ".pdf", ".svg")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("embeddings", help="folder that predict wrote, or a .npz or .safetensors file with labels")
    parser.add_argument("--ks", type=_integers, default="1,10", help="cut-offs of recall")
    parser.add_argument(
        "--fit",
        help="embeddings of other images by the same model, on which means, principal components, scales and centroids "
        "are fitted; default: the gallery itself, without labels",
    )
    parser.add_argument("--dims", type=_integers, help="fewer dimensions to try; default: D/2, D/4, ..., at least 32")
    parser.add_argument("--rescore", type=int, default=4, help="binary candidates for each item that is asked for")
    parser.add_argument("--queries", type=int, default=5000, help="if there are more queries, score this many of them")
    parser.add_argument("--plot", help="new .png, .pdf or .svg file: recall against bytes")
    parser.add_argument("--csv", help="new file with the table, and with the bytes that are kept once")


def run(arguments: Namespace) -> None:
    """Prints the table, and writes the plot and the CSV file.

    Raises:
        ValueError: for embeddings or arguments that do not fit, see `size_table`, and for existing files.
    """
    plot, csv = (_new_file(name, getattr(arguments, name)) for name in ("plot", "csv"))
    if plot is not None and plot.suffix not in PLOT_SUFFIXES:
        raise ValueError(f"--plot must end in {', '.join(PLOT_SUFFIXES)}, got {plot}.")
    from rich import get_console

    from lightning_recall.compression import draw_sizes, size_table, write_size_csv
    from lightning_recall.compression.protocol import RetrievalProtocol
    from lightning_recall.embedding_sets import read_embedding_set

    embedding_set = read_embedding_set(arguments.embeddings)
    fit = None if arguments.fit is None else read_embedding_set(arguments.fit)
    ks, queries = arguments.ks, arguments.queries
    num_queries = RetrievalProtocol(embedding_set, ks, queries).num_queries
    rows = size_table(embedding_set, ks, fit, arguments.dims, arguments.rescore, queries, progress=True)
    num, dim = embedding_set.embeddings.shape
    title = f"{num:,} embeddings of {dim:,} dimensions: {arguments.embeddings}"
    _print_table(rows, title, _notes(rows, num_queries, arguments.fit))
    if csv is not None:
        write_size_csv(rows, csv)
        get_console().print(f"Table: {csv}", soft_wrap=True)
    if plot is not None:
        with plot.open("xb") as opened:
            draw_sizes(rows, ks[0]).savefig(opened, format=plot.suffix[1:], dpi=110)
        get_console().print(f"Plot: {plot}", soft_wrap=True)


def _integers(text: str) -> tuple[int, ...]:
    """Integers separated by commas."""
    return tuple(int(part) for part in text.split(","))


def _new_file(name: str, text: str | None) -> Path | None:
    """Path of a file to be written.

    Raises:
        ValueError: if it exists, or its folder does not.
    """
    if text is None:
        return None
    path = Path(text).expanduser()
    if path.exists():
        raise ValueError(f"--{name} must be a new file, and {path} exists: pass another name, or delete it.")
    if not path.parent.is_dir():
        raise ValueError(f"--{name} must be in an existing folder, and there is no {path.parent}: create it first.")
    return path


def _print_table(rows: "list[SizeRow]", title: str, notes: str) -> None:
    """Prints the rows; on narrow terminals, names take several lines and nothing is cut."""
    from rich import get_console
    from rich.table import Table

    from lightning_recall.metrics.scores import score_title

    get_console().print(title, soft_wrap=True, highlight=False, markup=False)
    table = Table(caption=notes, caption_justify="left")
    table.add_column("stored as", overflow="fold")
    for name in ("bytes", *map(score_title, rows[0].scores), "build,\ns", "search,\nms"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        scores = ["-" if math.isnan(value) else f"{100 * value:.1f}" for value in row.scores.values()]
        table.add_row(
            row.method, f"{row.bytes_per_image:,.0f}", *scores, f"{row.build_seconds:.2f}", f"{row.search_ms:.3f}"
        )
    get_console().print(table)


def _notes(rows: "list[SizeRow]", num_queries: int, fit: str | None) -> str:
    """What the columns and the names mean."""
    import torch
    from rich.markup import escape

    scored = f"{rows[0].num_queries:,}" + f" of {num_queries:,}" * (rows[0].num_queries < num_queries)
    where = "the gallery itself, without labels: slightly optimistic" if fit is None else escape(fit)
    has_faiss = any(row.family == "faiss" for row in rows)
    names = "leading: first dimensions; xN: N times as many binary candidates, ordered by float query or int8 codes"
    return (
        f"Scores in %, of {scored} queries. Fitted on {where}. Names: {names}{'; IVF, HNSW, PQ: faiss' * has_faiss}. "
        "Bytes: of each image. Build: seconds to fit, encode and index. Search: milliseconds a query, of a batch, on "
        f"this machine; threads: {torch.get_num_threads()}."
    )
