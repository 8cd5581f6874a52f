"""`lightning-recall search`: finds the items of an index that are nearest to images."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from lightning_recall.commands.index import TRUST

DEFAULT_K = 8
PICTURE_SUFFIXES = (".png", ".jpg", ".pdf", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("index", metavar="INDEX", help="folder that lightning-recall index has written")
    parser.add_argument(
        "queries",
        metavar="QUERY",
        nargs="+",
        help="image files; or embeddings of the index's model: .npz or .safetensors files, or folders",
    )
    parser.add_argument("-k", type=int, help="number of neighbours (default: 8, or all items if there are fewer)")
    parser.add_argument(
        "--threshold",
        type=float,
        help="items below this similarity are no match (default: the threshold saved with the model, if there is one)",
    )
    parser.add_argument("--draw", metavar="FILE.png", help="draw queries and neighbours; also .jpg, .pdf, .svg")
    parser.add_argument("--csv", metavar="FILE.csv", help="write the neighbours of all queries to a table")
    parser.add_argument("--trust", metavar="CLASS_OR_PACKAGE", nargs="+", default=(), help=TRUST)
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="folder of the images of the index, if they have moved (for --draw and --csv)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command; existing files are kept, new ones get a number.

    Raises:
        ValueError: for a folder --images that does not exist, files that cannot be written, embeddings of another
            model, and k above the number of items. For images that cannot be read, after the others are answered.
    """
    from lightning_recall.callbacks.output import print_path, unused_paths
    from lightning_recall.commands.queries import answer, read_queries
    from lightning_recall.commands.search_results import draw, print_tables, write_csv
    from lightning_recall.indexes import open_index

    check_outputs(arguments)
    index = open_index(arguments.index)
    if arguments.images is not None:
        if not os.path.isdir(arguments.images):
            raise ValueError(f"--images {arguments.images} is not a folder: pass the folder of the index's images.")
        index.manifest = replace(index.manifest, image_folder=os.path.realpath(arguments.images))
    k = min(DEFAULT_K, len(index)) if arguments.k is None else arguments.k
    threshold = index.threshold if arguments.threshold is None else arguments.threshold
    queries = read_queries(index, arguments.queries, arguments.trust)
    answers = answer(index, queries, k, threshold)
    print_tables(answers, threshold)
    if arguments.csv is not None:
        (path,) = unused_paths(Path(arguments.csv).expanduser())
        write_csv(path, answers)
        print_path("Table", path)
    if arguments.draw is not None and answers:
        (path,) = unused_paths(Path(arguments.draw).expanduser())
        draw(answers, threshold).savefig(path, dpi=110)
        print_path("Picture", path)
    if queries.unreadable:
        reasons = "; ".join(f"{file}: {reason}" for file, reason in queries.unreadable.items())
        raise ValueError(f"These queries cannot be read as images: {reasons}.")


def check_outputs(arguments: argparse.Namespace) -> None:
    """Raises ValueError, before anything is embedded, for files that cannot be written."""
    for name in ("draw", "csv"):
        file = getattr(arguments, name)
        folder = Path(file or "").expanduser().parent
        if not folder.is_dir():
            raise ValueError(f"--{name} must be in an existing folder, and there is no {folder}: create it first.")
    if arguments.draw is not None and Path(arguments.draw).suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"--draw must end in {', '.join(PICTURE_SUFFIXES)}, got {arguments.draw}.")
