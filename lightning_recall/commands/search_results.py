"""Answers of a search as tables, as a CSV file and as a picture."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich import get_console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lightning_recall.callbacks.output import print_line
from lightning_recall.commands.queries import Answer, Neighbor
from lightning_recall.data import read_image
from lightning_recall.plots import FoundImage, draw_search_results

MAX_SHOWN = 20
"""queries that are printed and drawn"""
DRAWN_SIDE = 320
"""pixels of the longer side of an image that is drawn, at most"""
CSV_COLUMNS = ("query", "rank", "similarity", "match", "id", "class", "label", "file")
MATCH = {True: "yes", False: "no match", None: ""}


def print_tables(answers: Sequence[Answer], threshold: float | None) -> None:
    """Prints a table for each of the first 20 queries."""
    for answer in answers[:MAX_SHOWN]:
        print_line(printable(answer.name))
        table = Table()
        for name in ("rank", "similarity", *["match"] * (threshold is not None)):
            table.add_column(name, justify="right")
        for name in ("class", "file"):
            table.add_column(name, overflow="fold")
        for rank, found in enumerate(answer.neighbors, 1):
            match = [MATCH[found.is_match]] * (threshold is not None)
            names = found.item.class_name, found.item.path or f"id {found.item.id}"
            table.add_row(str(rank), f"{found.similarity:.3f}", *match, *(Text(printable(name)) for name in names))
        get_console().print(table)
    if threshold is not None and answers:
        print_line(f"Threshold: {threshold:.3f}. Items below it are no match.")
    if len(answers) > MAX_SHOWN:
        print_line(f"Tables and picture show the first {MAX_SHOWN} of {len(answers):,} queries; --csv writes all.")


def write_csv(path: Path, answers: Sequence[Answer]) -> None:
    """Writes a line for each neighbour of each query."""
    with path.open("x", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for answer in answers:
            for rank, (similarity, item, found, is_match) in enumerate(answer.neighbors, 1):
                label = "" if item.label is None else item.label
                row = rank, f"{similarity:.6f}", MATCH[is_match], item.id, item.class_name, label, found
                writer.writerow([answer.name, *row])


def draw(answers: Sequence[Answer], threshold: float | None) -> Figure:
    """Draws a row for each of the first 20 queries; images that cannot be read are empty frames."""
    rows = [
        [FoundImage(load(answer.file), shown_name(answer.name)), *(found_image(found) for found in answer.neighbors)]
        for answer in answers[:MAX_SHOWN]
    ]
    text = "Queries and the most similar items, with their similarity"
    if threshold is not None:
        text += f"\ngreen solid = match, red dashed = no match (below {threshold:.2f})"
    return draw_search_results(rows, text)


def found_image(found: Neighbor) -> FoundImage:
    """A neighbour with its image and class; without one of them, its file is its name."""
    image, file = load(found.file), shown_name(found.item.path) or f"id {found.item.id}"
    name = file if image is None else printable(found.item.class_name) or file
    return FoundImage(image, name, found.similarity, found.is_match)


def load(file: str) -> Tensor | None:
    """An image (C, H, W) uint8; None if it cannot be read."""
    try:
        return read_image(file, longest_side=DRAWN_SIDE) if file else None
    except Exception:  # decoders may raise any exception
        return None


def shown_name(path: str) -> str:
    """The name of a file without its folders."""
    return printable(os.path.basename(path))


def printable(text: str) -> str:
    """A text whose control characters and undecodable bytes are replaced by "\N{REPLACEMENT CHARACTER}"."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
