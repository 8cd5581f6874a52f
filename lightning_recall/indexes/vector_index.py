"""What the engines of an index have in common: rows of unit embeddings, found by cosine similarity."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lightning_recall.checks import check_finite, check_integer
from lightning_recall.search import EmbeddingBlocks

Engine = Literal["faiss", "usearch"]

BLOCK_SIZE = 16_384
"""embeddings that are normalised and added at once"""
NUM_EXACT = 100_000
"""number of items from which "auto" is an approximate index"""
FEW = -1
"""row of a neighbour that an approximate index did not find"""


class VectorIndex(ABC):
    """Embeddings of N items in rows 0, ..., N - 1, found by cosine similarity.

    Embeddings are scaled to unit length when they are added, and queries when they are searched.

    Args:
        kind: kind of the index.
        dim: D, the dimension of the embeddings.

    Attributes:
        engine: name of the library.
    """

    engine: ClassVar[Engine]

    def __init__(self, kind: str, dim: int) -> None:
        self.kind = kind
        self.dim = dim

    @abstractmethod
    def __len__(self) -> int:
        """N, the number of items."""

    @abstractmethod
    def save(self, file: Path) -> None:
        """Writes the index to a file."""

    @abstractmethod
    def _add(self, embeddings: NDArray[np.float32]) -> None:
        """Appends unit embeddings (n, D)."""

    @abstractmethod
    def _search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Similarities (Q, k), in descending order, and rows (Q, k) of the nearest items of unit queries (Q, D)."""

    def add(self, embeddings: Tensor) -> None:
        """Appends embeddings (n, D), in blocks; shows a progress bar if this takes more than two seconds.

        Raises:
            ValueError: if the dimension is not D, or embeddings are not finite.
        """
        blocks = self._checked(embeddings, "embeddings have")
        starts = range(0, len(blocks), BLOCK_SIZE)
        for start in tqdm(starts, "Indexing", unit=f" x {BLOCK_SIZE:,} items", delay=2, leave=False):
            self._add(blocks.block(start, min(start + BLOCK_SIZE, len(blocks))).numpy())

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Finds the k nearest items of each query.

        Args:
            queries: (Q, D).
            k: number of neighbours, 1 to N.

        Returns:
            Similarities (Q, k) float32, in descending order, and rows (Q, k) int64. An approximate index may find fewer
            than k items; the others have the row -1 and the similarity -inf. Compressing kinds, such as "pq",
            approximate the similarities too.

        Raises:
            ValueError: if k is out of range, the dimension is not D, or queries are not finite.
        """
        blocks = self._checked(queries, "queries have")
        check_integer("k", k, 1)
        if k > len(self):
            raise ValueError(f"k must be at most {len(self)}, the number of items in the index, got {k}.")
        if len(blocks) == 0:
            return torch.zeros(0, k), torch.zeros(0, k, dtype=torch.int64)
        similarities, rows = map(torch.from_numpy, self._search(blocks.block(0, len(blocks)).numpy(), k))
        return similarities.masked_fill(rows == FEW, -torch.inf), rows

    def check_dim(self, embeddings: Tensor, subject: str) -> None:
        """Raises ValueError unless embeddings are (n, D); `subject` starts the sentence, such as "queries have"."""
        dim = EmbeddingBlocks(embeddings).dim
        if dim != self.dim:
            raise ValueError(f"{subject} dimension {dim}, but those of the index have dimension {self.dim}.")

    def _checked(self, embeddings: Tensor, subject: str) -> EmbeddingBlocks:
        """Embeddings (n, D) that are normalised when they are read."""
        self.check_dim(embeddings, subject)
        check_finite(embeddings)
        return EmbeddingBlocks(embeddings)


def choose_kind(kind: str, num_items: int) -> str:
    """The kind itself; for "auto", "exact" below 100,000 items and "hnsw" from there.

    >>> choose_kind("auto", 99_999), choose_kind("auto", 100_000), choose_kind("ivf", 10)
    ('exact', 'hnsw', 'ivf')
    """
    if kind != "auto":
        return kind
    return "exact" if num_items < NUM_EXACT else "hnsw"


def make_vectors(engine: Engine, kind: str, embeddings: Tensor) -> VectorIndex:
    """An index of embeddings (N, D).

    Args:
        engine: "faiss" or "usearch".
        kind: see `build_index`.
        embeddings: (N, D).

    Raises:
        ValueError: for an unknown engine or kind, and if the embeddings are too few for the kind.
        ImportError: if the engine is not installed.
    """
    from lightning_recall.indexes.faiss_index import FaissIndex
    from lightning_recall.indexes.usearch_index import UsearchIndex

    kind = choose_kind(kind, len(embeddings))
    if engine not in ("faiss", "usearch"):
        raise ValueError(f'engine must be "faiss" or "usearch", got {engine!r}.')
    index = FaissIndex.empty(kind, embeddings) if engine == "faiss" else UsearchIndex.empty(kind, embeddings)
    index.add(embeddings)
    return index


def load_vectors(engine: str, kind: str, file: Path) -> VectorIndex:
    """Reads what `VectorIndex.save` has written. The engines parse the file in C++: read only files that you trust.

    Raises:
        ValueError: for an unknown engine, or a file that the engine cannot read.
        ImportError: if the engine is not installed.
    """
    from lightning_recall.indexes.faiss_index import FaissIndex
    from lightning_recall.indexes.usearch_index import UsearchIndex

    if engine not in ("faiss", "usearch"):
        raise ValueError(f'{file}: the engine must be "faiss" or "usearch", got {engine!r}.')
    return FaissIndex.load(kind, file) if engine == "faiss" else UsearchIndex.load(kind, file)
