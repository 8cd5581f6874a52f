"""Queries of a search, read from image files or files of embeddings, and their answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.commands.index import holds_embeddings
from lightning_recall.commands.saved_model import embed_files, model_of
from lightning_recall.embedding_sets import EmbeddingSet, read_embedding_set
from lightning_recall.indexes import Item, SearchIndex
from lightning_recall.indexes.folder import check_same_model, image_folder_of
from lightning_recall.indexes.items import image_file


class Queries(NamedTuple):
    """Q queries.

    embeddings: (Q, D).
    names: what each is called.
    files: image file of each; "" if it is unknown.
    unreadable: image file that cannot be read -> why.
    """

    embeddings: Tensor
    names: list[str]
    files: list[str]
    unreadable: dict[str, str]


class Neighbor(NamedTuple):
    """An item that was found.

    similarity: to the query.
    item: what is known of it.
    file: absolute path of its image; "" if it is unknown.
    is_match: whether the similarity reaches the threshold; None if there is no threshold.
    """

    similarity: float
    item: Item
    file: str
    is_match: bool | None


class Answer(NamedTuple):
    """What was found for a query.

    name: what the query is called.
    file: its image; "" if it is unknown.
    neighbors: nearest first; fewer than k if an approximate index finds no more.
    """

    name: str
    file: str
    neighbors: list[Neighbor]


def read_queries(index: SearchIndex, sources: Sequence[str], trust: Sequence[str] = ()) -> Queries:
    """Embeds image files with the model of an index, and reads embeddings; keeps the order.

    Args:
        index: the index.
        sources: image files; .npz or .safetensors files, or folders, of embeddings.
        trust: see `RetrievalModule.from_pretrained`.

    Raises:
        ValueError: for images, if the index has no model; for embeddings of another model.
    """
    images = [source for source in sources if not is_embeddings(source)]
    embedded = embed_files(model_of(index, trust), images) if images else None
    of_image = {} if embedded is None else dict(zip(embedded.files, embedded.embeddings, strict=True))
    embeddings, names, files = [torch.zeros(0, index.manifest.dim)], [], []
    for source in sources:
        if is_embeddings(source):
            queries = read_embedding_set(source)
            check_same_model(index.manifest.weights, queries.model.get("weights", ""), source)
            index.vectors.check_dim(queries.embeddings, f"{source}: embeddings have")
            embeddings.append(queries.embeddings.float())
            names += names_of(queries)
            files += [image_file(path, image_folder_of(queries)) for path in queries.paths or [""] * len(queries.ids)]
        elif source in of_image:
            embeddings.append(of_image[source][None])
            names.append(source)
            files.append(source)
    return Queries(torch.cat(embeddings), names, files, {} if embedded is None else embedded.unreadable)


def is_embeddings(source: str) -> bool:
    """Whether a query is a file or folder of embeddings."""
    path = Path(source).expanduser()
    return path.is_dir() or holds_embeddings(path)


def names_of(queries: EmbeddingSet) -> list[str]:
    """Paths of the items of a set, or its name and their ids."""
    return queries.paths or [f"{queries.path.name} {number}" for number in queries.ids.tolist()]


def answer(index: SearchIndex, queries: Queries, k: int, threshold: float | None) -> list[Answer]:
    """Searches the k nearest items of each query.

    Raises:
        ValueError: if k is not in 1 to N.
    """
    similarities, rows = index.search(queries.embeddings, k)
    answers = []
    for number, (name, file) in enumerate(zip(queries.names, queries.files, strict=True)):
        found = zip(similarities[number].tolist(), rows[number].tolist(), strict=True)
        neighbors = [
            Neighbor(value, index.items[row], index.file(row), None if threshold is None else value >= threshold)
            for value, row in found
            if row >= 0
        ]
        answers.append(Answer(name, file, neighbors))
    return answers
