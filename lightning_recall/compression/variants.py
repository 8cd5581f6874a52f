"""Ways to store embeddings: what is kept of each item, how it is compared, and how many bytes it takes."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.compression.dimensions import PCA
from lightning_recall.compression.quantization import int8_scale, pack_binary, quantize_int8, unpack_signs
from lightning_recall.search import EmbeddingBlocks
from lightning_recall.search.embedding_blocks import BLOCK_SIZE

FLOAT, HALF, INT8, BINARY = "float32", "float16", "int8", "binary"
ITEM_BITS = {FLOAT: 32, HALF: 16, INT8: 8, BINARY: 1}
"""storage -> bits of a dimension"""


class Variant(NamedTuple):
    """Embeddings of N items, stored in one way.

    method: how, in words; `family`: what rows of a table and points of a plot belong together.
    storage: FLOAT, HALF, INT8 or BINARY.
    queries: what each item is as a query.
    items: what each item is in the gallery, decoded; the same object as `queries` if that is the same.
    shared_bytes: bytes that are kept once: components, means and scales.
    """

    method: str
    family: str
    storage: str
    queries: EmbeddingBlocks
    items: EmbeddingBlocks
    shared_bytes: int = 0

    @property
    def bytes_per_image(self) -> int:
        """Bytes that each item takes."""
        return -(-self.items.dim * ITEM_BITS[self.storage] // 8)


class Source(NamedTuple):
    """Embeddings to be stored.

    embeddings: (N, D).
    fit: what means, components and scales are fitted on, for example the gallery.
    """

    embeddings: Tensor
    fit: EmbeddingBlocks

    @property
    def dim(self) -> int:
        """The dimension D."""
        return self.embeddings.shape[1]

    def full(self, method: str = "full", dim: int | None = None) -> Variant:
        """The first `dim` dimensions in float32, all by default."""
        blocks = EmbeddingBlocks(self.embeddings[:, :dim])
        return Variant(method, "leading dimensions", FLOAT, blocks, blocks)

    def principal(self, pca: PCA, dim: int) -> Variant:
        """Principal components in float32."""
        blocks = EmbeddingBlocks(pca(self.embeddings, dim))
        return Variant(f"PCA {dim}", "PCA", FLOAT, blocks, blocks, shared_bytes=4 * self.dim * (dim + 1))

    def half(self) -> Variant:
        """Float16 items, float32 queries."""
        items = self.encoded(Tensor.half, torch.float16)
        return Variant("float16", "scalar", HALF, EmbeddingBlocks(self.embeddings), unscaled(items))

    def int8(self) -> Variant:
        """Int8 items with a scale for each dimension, which multiplies the float32 queries."""
        scale = torch.stack([int8_scale(block) for block in read(self.fit)]).amax(0)
        items = self.encoded(lambda block: quantize_int8(block, scale)[0].half(), torch.float16)  # exact up to 2,048
        queries = EmbeddingBlocks(self.encoded(lambda block: block * scale, torch.float32))
        return Variant("int8", "scalar", INT8, queries, unscaled(items), shared_bytes=4 * self.dim)

    def binary(self, center: bool) -> Variant:
        """Signs of the dimensions, after subtracting their means if `center`."""
        mean = self.mean() if center else torch.zeros(self.dim)
        items = self.encoded(lambda block: unpack_signs(pack_binary(block - mean), self.dim), torch.float16)
        blocks = EmbeddingBlocks(items)
        name = "binary, centred" if center else "binary"
        return Variant(name, "binary", BINARY, blocks, blocks, shared_bytes=4 * self.dim * center)

    def float_queries(self, binary: Variant) -> Variant:
        """Binary items, compared with float32 queries."""
        mean = self.mean() if binary.shared_bytes else torch.zeros(self.dim)
        queries = EmbeddingBlocks(self.encoded(lambda block: block - mean, torch.float32))
        return binary._replace(queries=queries)

    def mean(self) -> Tensor:
        """Mean (D,) of the unit embeddings of `fit`."""
        return (sum(block.double().sum(0) for block in read(self.fit)) / len(self.fit)).float()  # type: ignore[union-attr]  # not empty

    def encoded(self, encode: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
        """The unit embeddings (N, D), encoded one block at a time."""
        codes, start = torch.empty(self.embeddings.shape, dtype=dtype), 0
        for block in read(EmbeddingBlocks(self.embeddings)):
            codes[start : start + len(block)] = encode(block)
            start += len(block)
        return codes


unscaled = partial(EmbeddingBlocks, normalize=False)
"""items whose length counts, because the search does not normalise them either"""


def read(embeddings: EmbeddingBlocks) -> Iterator[Tensor]:
    """Unit embeddings (n, D) in float32, one block at a time; those with `normalize=False` without scaling."""
    for start in range(0, len(embeddings), BLOCK_SIZE):
        block = embeddings.block(start, min(start + BLOCK_SIZE, len(embeddings)))
        yield block if embeddings.scale is None else block * embeddings.scale
