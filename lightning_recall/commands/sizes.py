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
    parser.add_argument("--plot", help="new .png, .pdf or .svg file: recall against bytes")
    parser.add_argument("--csv", help="new file with the table")


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
    from lightning_recall.embedding_sets import read_embedding_set

    embedding_set = read_embedding_set(arguments.embeddings)
    fit = None if arguments.fit is None else read_embedding_set(arguments.fit)
    ks = arguments.ks
    rows = size_table(embedding_set, ks, fit, arguments.dims, arguments.rescore, progress=True)
    _print_table(rows, f"{len(embedding_set.embeddings):,} embeddings of {arguments.embeddings}", arguments.fit)
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


def _print_table(rows: "list[SizeRow]", title: str, fit: str | None) -> None:
    """Prints the rows, and what the columns mean."""
    import torch
    from rich import get_console
    from rich.table import Table

    where = "the gallery itself, without labels: slightly optimistic" if fit is None else fit
    caption = (
        f"Scores in %. Fitted on {where}. Bytes: of each image, and kept once (shared). Build: seconds to fit, encode "
        f"and index. Search: milliseconds a query, of a batch, on this machine with {torch.get_num_threads()} threads."
    )
    table = Table(title=title, caption=caption, min_width=len(title))
    table.add_column("stored as")
    for name in ("dim", "bytes", "shared", *(_title(name) for name in rows[0].scores), "build, s", "search, ms", "by"):
        table.add_column(name, justify="right")
    for row in rows:
        scores = ["-" if math.isnan(value) else f"{100 * value:.1f}" for value in row.scores.values()]
        sizes = f"{row.dim}", f"{row.bytes_per_image:,.0f}", f"{row.shared_bytes:,}"
        table.add_row(row.method, *sizes, *scores, f"{row.build_seconds:.2f}", f"{row.search_ms:.3f}", row.engine)
    get_console().print(table)


def _title(score: str) -> str:
    """R@1 for recall@1, mAP@R for map@r."""
    return score.replace("recall", "R").replace("map@r", "mAP@R")
