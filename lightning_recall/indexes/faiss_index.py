"""An index of faiss (https://github.com/facebookresearch/faiss), which needs the extra `faiss`."""

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_recall.indexes.vector_index import Engine, VectorIndex
from lightning_recall.search import EmbeddingBlocks

POINTS_PER_LIST = 39
"""training points that faiss wants for each list of an inverted file and for each centroid of a quantizer"""
NUM_CENTROIDS = 256
"""of product quantization with 8 bits"""
MAX_TRAINING = 262_144
"""embeddings that lists and centroids are fitted to, at most"""
EF_CONSTRUCTION, EF_SEARCH = 200, 128
"""candidates of HNSW while it is built and searched; faiss has 40 and 16, which miss several percent"""
DIMS_PER_BYTE = 4
"""of "pq": embeddings are compressed 16 times"""


class FaissIndex(VectorIndex):
    """An index of faiss.

    Args:
        kind: see `build_index`.
        index: the faiss index, of inner products.
    """

    engine: ClassVar[Engine] = "faiss"

    def __init__(self, kind: str, index: Any) -> None:
        super().__init__(kind, index.d)
        self.index = index

    @classmethod
    def empty(cls, kind: str, embeddings: Tensor) -> "FaissIndex":
        """An index without items, fitted to embeddings (N, D).

        Raises:
            ValueError: for an unknown kind, and if the embeddings are too few for it.
        """
        faiss = import_faiss()
        num_items, dim = embeddings.shape
        if "PQ" in kind.upper() and num_items < NUM_CENTROIDS:
            raise ValueError(f'the kind "{kind}" needs at least {NUM_CENTROIDS} items, got {num_items}: use "exact".')
        try:
            index = faiss.index_factory(dim, factory_string(kind, num_items, dim), faiss.METRIC_INNER_PRODUCT)
            configure(index)
            if not index.is_trained:
                index.train(training_points(embeddings))
        except RuntimeError as error:
            reason = str(error).split(": ")[-1].strip()
            raise ValueError(
                f'kind must be "exact", "hnsw", "ivf", "pq" or a text that faiss.index_factory understands, such as '
                f'"IVF256,PQ32", got "{kind}". ({reason})'
            ) from error
        return cls(kind, index)

    @classmethod
    def load(cls, kind: str, file: Path) -> "FaissIndex":
        """Reads a file.

        Raises:
            ValueError: if faiss cannot read it.
        """
        try:
            return cls(kind, import_faiss().read_index(str(file)))
        except RuntimeError as error:
            raise ValueError(f"{file} is not an index of faiss, or was written by a newer faiss.") from error

    def save(self, file: Path) -> None:
        """Writes the index to a file."""
        import_faiss().write_index(self.index, str(file))

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def _add(self, embeddings: NDArray[np.float32]) -> None:
        self.index.add(embeddings)

    def _search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        similarities, rows = self.index.search(queries, k)
        return similarities, rows


def factory_string(kind: str, num_items: int, dim: int) -> str:
    """The description that `faiss.index_factory` takes; "np" omits a slow training for Hamming distances.

    Inverted files have 4 sqrt(N) lists, as faiss recommends, but at most one for 39 items.

    >>> [factory_string(kind, 10_000, 96) for kind in ("exact", "hnsw", "ivf", "pq", "IVF64,PQ8")]
    ['Flat', 'HNSW32', 'IVF256,Flat', 'PQ24np', 'IVF64,PQ8']
    """
    num_lists = max(1, min(int(4 * math.sqrt(num_items)), num_items // POINTS_PER_LIST))
    num_bytes = max(size for size in range(1, max(2, dim // DIMS_PER_BYTE + 1)) if dim % size == 0)
    named = {"exact": "Flat", "hnsw": "HNSW32", "ivf": f"IVF{num_lists},Flat", "pq": f"PQ{num_bytes}np"}
    return named.get(kind, kind)


def configure(index: Any) -> None:
    """Sets how thoroughly an index is built and searched; faiss saves these settings with the index."""
    faiss = import_faiss()
    if hasattr(index, "hnsw"):
        index.hnsw.efConstruction, index.hnsw.efSearch = EF_CONSTRUCTION, EF_SEARCH
    if hasattr(index, "pq"):
        index.pq.cp.min_points_per_centroid = 1  # otherwise C++ prints hundreds of warnings
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        lists.nprobe = min(lists.nlist, max(8, lists.nlist // 16))
        lists.cp.min_points_per_centroid = 1


def training_points(embeddings: Tensor) -> NDArray[np.float32]:
    """Unit embeddings (n, D) that lists and centroids are fitted to: a random sample."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randperm(len(embeddings), generator=generator)[:MAX_TRAINING]
    points: NDArray[np.float32] = EmbeddingBlocks(embeddings).reordered(sample).block(0, len(sample)).numpy()
    return points


def import_faiss() -> Any:
    """The module faiss.

    Raises:
        ImportError: with the line for pip.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError('an index of faiss needs faiss: pip install "lightning-recall[faiss]"') from error
    return faiss
