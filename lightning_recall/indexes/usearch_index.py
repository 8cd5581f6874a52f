"""An index of usearch (https://github.com/unum-cloud/usearch), which needs the extra `usearch`."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_recall.indexes.vector_index import FEW, Engine, VectorIndex

CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 32, 200, 128
"""as for faiss; usearch has 16, 128 and 64"""


class UsearchIndex(VectorIndex):
    """An index of usearch, whose keys are rows. The kind "exact" compares each query with all items.

    Args:
        kind: "exact" or "hnsw".
        index: the usearch index, of inner products.
    """

    engine: ClassVar[Engine] = "usearch"

    def __init__(self, kind: str, index: Any) -> None:
        super().__init__(kind, index.ndim)
        self.index = index

    @classmethod
    def empty(cls, kind: str, embeddings: Tensor) -> "UsearchIndex":
        """An index without items, for embeddings (N, D).

        Raises:
            ValueError: for another kind.
        """
        if kind not in ("exact", "hnsw"):
            raise ValueError(f'kind must be "exact" or "hnsw" with usearch, got "{kind}": use engine faiss for others.')
        graph = {"connectivity": CONNECTIVITY, "expansion_add": EXPANSION_ADD}
        if kind == "exact":  # usearch always builds a graph; the smallest one, since it is not used
            graph = {"connectivity": 2, "expansion_add": 1}
        make = import_usearch().Index
        return cls(
            kind,
            make(
                ndim=embeddings.shape[1],
                metric="ip",
                dtype="f32",  # otherwise embeddings are rounded to bfloat16
                expansion_search=EXPANSION_SEARCH,
                **graph,
            ),
        )

    @classmethod
    def load(cls, kind: str, file: Path) -> "UsearchIndex":
        """Reads a file.

        Raises:
            ValueError: if usearch cannot read it.
        """
        try:
            index = import_usearch().Index.restore(str(file))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{file} is not an index of usearch, or was written by a newer usearch.") from error
        index.expansion_search = EXPANSION_SEARCH  # not saved by usearch
        return cls(kind, index)

    def save(self, file: Path) -> None:
        """Writes the index to a file."""
        self.index.save(str(file))

    def __len__(self) -> int:
        return len(self.index)

    def _add(self, embeddings: NDArray[np.float32]) -> None:
        self.index.add(np.arange(len(self), len(self) + len(embeddings), dtype=np.uint64), embeddings)

    def _search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        matches = self.index.search(queries, k, exact=self.kind == "exact")
        shape = len(queries), k  # usearch drops the first dimension of one query
        rows = np.asarray(matches.keys).astype(np.int64).reshape(shape)
        similarities = 1 - np.asarray(matches.distances, dtype=np.float32).reshape(shape)
        counts = np.asarray(getattr(matches, "counts", len(matches))).reshape(-1, 1)
        rows[np.arange(k) >= counts] = FEW
        return similarities, rows


def import_usearch() -> Any:
    """The module usearch.index.

    Raises:
        ImportError: with the line for pip.
    """
    try:
        import usearch.index
    except ImportError as error:
        raise ImportError('an index of usearch needs usearch: pip install "lightning-recall[usearch]"') from error
    return usearch.index
