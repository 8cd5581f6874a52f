"""What an index knows of its items: `items.csv`."""

import csv
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.embedding_sets import EmbeddingSet
from lightning_recall.tensors import at_least_float32

BLOCK_SIZE = 16_384
"""embeddings that are converted at once"""
COLUMNS = ("id", "path", "label", "class", "checksum")


class Item(NamedTuple):
    """What is known of an item.

    id: its number.
    path: image file; "": unknown.
    label: number of its class; None: unknown.
    class_name: name of its class; "": unknown.
    checksum: of its embedding, for items without a path; "" otherwise.
    """

    id: int
    path: str = ""
    label: int | None = None
    class_name: str = ""
    checksum: str = ""


def items_of(embedding_set: EmbeddingSet) -> list[Item]:
    """The items of a set, in its order."""
    count = len(embedding_set.ids)
    paths = embedding_set.paths or [""] * count
    labels = [None] * count if embedding_set.labels is None else embedding_set.labels.tolist()
    classes = embedding_set.classes or [""] * count
    checksums = [""] * count if embedding_set.paths else checksums_of(embedding_set.embeddings)
    return [Item(*known) for known in zip(embedding_set.ids.tolist(), paths, labels, classes, checksums, strict=True)]


def checksums_of(embeddings: Tensor) -> list[str]:
    """CRC-32 of each of the embeddings (N, D)."""
    blocks = (at_least_float32(block).cpu().contiguous().numpy() for block in torch.split(embeddings, BLOCK_SIZE))
    return [f"{zlib.crc32(row):08x}" for block in blocks for row in block]


def write_items(file: Path, items: list[Item]) -> None:
    """Writes items.csv."""
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        writer.writerows(["" if value is None else value for value in item] for item in items)


def read_items(file: Path) -> list[Item]:
    """Reads items.csv.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            header, *rows = csv.reader(opened)
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(header)}")
        return [
            Item(int(number), path, int(label) if label else None, name, checksum)
            for number, path, label, name, checksum in rows
        ]
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{file} is damaged: build the index again. ({error})") from error


def image_file(path: str, image_folder: str) -> str:
    """Absolute path of an image; "" if the path of the item is unknown."""
    return os.path.normpath(os.path.join(image_folder or os.getcwd(), path)) if path else ""


def new_items(known: list[Item], added: list[Item], known_folder: str, added_folder: str) -> dict[int, Item]:
    """Items that an index does not have yet: position in `added` -> item, as the index names it.

    An image file is known by its path, and gets a new id. An item without a path is known by its id.

    Args:
        known: items of the index.
        added: items that may be new.
        known_folder: folder to which the paths of the index are relative.
        added_folder: folder to which the paths of `added` are relative.

    Raises:
        ValueError: if an item without a path has the id of another item.
    """
    files = {image_file(item.path, known_folder) for item in known if item.path}
    by_id = {item.id: item for item in known}
    next_id = max(by_id, default=-1) + 1
    found = {}
    for position, item in enumerate(added):
        file = image_file(item.path, added_folder)
        if file and file not in files:
            found[position] = item._replace(id=next_id, path=relative_to(file, known_folder))
            next_id += 1
        elif not file and item.id not in by_id:
            found[position] = item
        elif not file and by_id[item.id].checksum != item.checksum:
            raise ValueError(
                f"The index has another item with id {item.id}: give the added embeddings other ids, as an array "
                "`ids` beside `embeddings`."
            )
    return found


def relative_to(file: str, folder: str) -> str:
    """Path relative to a folder, for files inside it; others keep their absolute path."""
    inside = os.path.join(folder, "")
    return file.removeprefix(inside) if folder else file
