"""faiss indexes of stored embeddings, and the bytes that they take."""

import math
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from lightning_recall.compression.quantization import pack_binary
from lightning_recall.compression.variants import BINARY, FLOAT, HALF, INT8, read
from lightning_recall.search import EmbeddingBlocks

MAX_TRAINING_POINTS = 2**16  # for k-means: 134 MB at D = 512
CENTROIDS_PER_BYTE = 256  # of a product quantizer's subspace
DIMENSIONS_PER_BYTE = 8  # of a product quantizer: as many bytes as a binary code


class IndexRecipe(NamedTuple):
    """An approximate index.

    factory: the string that `faiss.index_factory` takes.
    settings: attributes of the index that are set before a search.
    min_points: embeddings that it must at least be trained on.
    """

    factory: str
    settings: dict[str, int] = {}  # noqa: RUF012  # a NamedTuple's default; never changed
    min_points: int = 1

    @property
    def method(self) -> str:
        """The factory string with the settings."""
        return ", ".join([self.factory, *(f"{name} {value}" for name, value in self.settings.items())])


def has_faiss() -> bool:
    """Whether faiss is installed: `pip install "lightning-recall[faiss]"`."""
    return find_spec("faiss") is not None


def index_recipes(num_items: int, dim: int) -> list[IndexRecipe]:
    """IVF, HNSW, PQ and IVF-PQ, with the settings that faiss' guidelines give for a gallery.

    About 4 sqrt(G) inverted lists, an eighth of them is searched; a product quantizer with a byte for 8 dimensions, or
    for more if 8 does not divide D.

    Source: https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index

    Args:
        num_items: size G of the gallery.
        dim: dimension D.

    >>> [recipe.factory for recipe in index_recipes(10_000, 512)]
    ['IVF400,Flat', 'HNSW32', 'PQ64', 'IVF400,PQ64']
    """
    lists = max(1, min(round(4 * math.sqrt(num_items)), num_items // 8))
    lists_searched = {"nprobe": max(1, lists // 8)}
    num_bytes = max(m for m in range(1, max(1, dim // DIMENSIONS_PER_BYTE) + 1) if dim % m == 0)
    return [
        IndexRecipe(f"IVF{lists},Flat", lists_searched, lists),
        IndexRecipe("HNSW32", {"efSearch": 64}),
        IndexRecipe(f"PQ{num_bytes}", {}, CENTROIDS_PER_BYTE),
        IndexRecipe(f"IVF{lists},PQ{num_bytes}", lists_searched, max(lists, CENTROIDS_PER_BYTE)),
    ]


def exact_index(items: EmbeddingBlocks, storage: str) -> Any:
    """A faiss index that compares queries with all items, by inner product or Hamming distance."""
    faiss: Any = import_module("faiss")  # its type hints lack half of what is used

    if storage == BINARY:
        index = faiss.IndexBinaryFlat(8 * -(-items.dim // 8))
        for block in read(items):
            index.add(pack_binary(block).numpy())
        return index
    quantizer = faiss.ScalarQuantizer
    types = {HALF: quantizer.QT_fp16, INT8: quantizer.QT_8bit_direct_signed}  # stores the codes as they are
    ip = faiss.METRIC_INNER_PRODUCT
    index = (
        faiss.IndexFlatIP(items.dim) if storage == FLOAT else faiss.IndexScalarQuantizer(items.dim, types[storage], ip)
    )
    for block in read(items):
        index.add((block.round() if storage == INT8 else block).numpy())  # undoes the rounding of the scale
    return index


def approximate_index(items: EmbeddingBlocks, fit: EmbeddingBlocks, recipe: IndexRecipe) -> tuple[Any, int]:
    """A faiss index with inner product, and the bytes of its trained part without items.

    Args:
        items: the gallery.
        fit: embeddings that its centroids are trained on, at most 65,536 of them, evenly spaced.
        recipe: what to build.
    """
    faiss: Any = import_module("faiss")  # its type hints lack half of what is used

    index = faiss.index_factory(items.dim, recipe.factory, faiss.METRIC_INNER_PRODUCT)
    _prepare_training(index)
    if not index.is_trained:
        step = -(-len(fit) // MAX_TRAINING_POINTS)
        index.train(torch.cat([*read(fit.reordered(torch.arange(0, len(fit), step)))]).numpy())
    trained_bytes = index_bytes(index)
    for block in read(items):
        index.add(block.numpy())
    for name, value in recipe.settings.items():
        setattr(index.hnsw if name == "efSearch" else index, name, value)
    return index, trained_bytes


def _prepare_training(index: Any) -> None:
    """Turns off warnings below 39 points for each centroid, and the annealing for Hamming filters, which nothing uses.

    The annealing takes a hundred times as long as k-means.
    """
    if hasattr(index, "do_polysemous_training"):
        index.do_polysemous_training = False
    for clustering in (getattr(part, "cp", None) for part in (index, getattr(index, "pq", None))):
        if clustering is not None:
            clustering.min_points_per_centroid = 1


def index_bytes(index: Any) -> int:
    """Bytes of an index as it is saved; it is not stored for that."""
    faiss: Any = import_module("faiss")  # its type hints lack half of what is used

    total = 0

    def count(part: bytes) -> int:
        nonlocal total
        total += len(part)
        return len(part)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count))
    return total
