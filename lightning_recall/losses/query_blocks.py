"""Similarities of consecutive blocks of queries with all items of a batch, and the gradient through them."""

import torch
from torch import Tensor

from lightning_recall.losses.gallery import MixedGallery
from lightning_recall.virtual_pairs import VirtualPairs

STORED_ELEMENTS = 2**22  # similarity gradients kept until those of the transposed pairs are known (16 MiB in fp32)
MIN_ACTIVE = 0.5  # below this fraction of queries with a gradient, two products of their rows are faster


class QueryBlocks:
    """Consecutive blocks of the queries of a batch, and their similarities with all its embeddings (N, D).

    The items are reordered, queries first: row i of the similarities is the query in column i.

    The gradient of the embeddings is (W + W^T) E, with W (N, N) the gradient of the similarities. Adding W_ij and W_ji
    before the products saves one of two. Blocks of W are therefore stored until the transposed block is known, as far
    as `STORED_ELEMENTS` allow.

    Args:
        embeddings: (N, D).
        queries: (Q,) indices of the queries, in the order of their blocks.
        block_size: number of queries in a block; the last one may be smaller.

    Attributes:
        columns: (N,) column of each item in the similarities.
    """

    def __init__(self, embeddings: Tensor, queries: Tensor, block_size: int) -> None:
        columns = torch.arange(len(embeddings), device=queries.device)
        order = columns.scatter(0, queries, columns[: len(queries)] - len(queries)).argsort()  # queries first
        self.is_reordered = not torch.equal(order, columns)
        self.columns = torch.empty_like(order).scatter_(0, order, columns)
        self.embeddings = embeddings[order] if self.is_reordered else embeddings
        self.gradient = torch.zeros_like(embeddings)
        self.num_queries, self.block_size = len(queries), block_size
        # queries per group of blocks whose pairs are added: a quarter of a group's matrix is stored at most
        self.group_size = max(int((4 * STORED_ELEMENTS) ** 0.5) // block_size, 1) * block_size
        self.stored: dict[int, list[tuple[slice, Tensor]]] = {}  # start of a block -> earlier queries and W (B, b)

    def __len__(self) -> int:
        return len(self.columns)

    def similarities(self, start: int, stop: int, scale: float, out: Tensor) -> Tensor:
        """Scaled dot products of the queries from `start` to `stop` with every item, written to `out` (q, N)."""
        return torch.mm(self.embeddings[start:stop] * scale, self.embeddings.T, out=out)

    def accumulate_gradient(self, start: int, stop: int, similarity_gradient: Tensor, active: Tensor | None) -> None:
        """Backpropagates the gradient of the similarities (q, len(self)) of one block, which is overwritten.

        `active` (a,) are the rows with a gradient; None: all.
        """
        stored = self.stored.pop(start, [])
        rows, block = self.gradient[start:stop], self.embeddings[start:stop]
        if active is not None and len(active) < MIN_ACTIVE * (stop - start):
            active_gradient = similarity_gradient[active]
            self.gradient.addmm_(active_gradient.T, block[active])
            rows.index_add_(0, active, active_gradient @ self.embeddings)
            for earlier, tile in stored:
                rows.addmm_(tile.T, self.embeddings[earlier])
                self.gradient[earlier].addmm_(tile, block)
            return
        for earlier, tile in stored:
            similarity_gradient[:, earlier] += tile.T
        diagonal = similarity_gradient[:, start:stop]
        diagonal += diagonal.T.clone()
        group_end = min(start // self.group_size * self.group_size + self.group_size, self.num_queries)
        for later in range(stop, group_end, self.block_size):
            tile = similarity_gradient[:, later : min(later + self.block_size, group_end)].clone()
            self.stored.setdefault(later, []).append((slice(start, stop), tile))
        rows.addmm_(similarity_gradient[:, :stop], self.embeddings[:stop])
        self.gradient[:start].addmm_(similarity_gradient[:, :start].T, block)
        if group_end < len(self):
            rows.addmm_(similarity_gradient[:, group_end:], self.embeddings[group_end:])
            self.gradient[group_end:].addmm_(similarity_gradient[:, group_end:].T, block)

    def embedding_gradient(self) -> Tensor:
        """The accumulated gradient (N, D), in the original order."""
        return self.gradient[self.columns] if self.is_reordered else self.gradient


class MixedQueryBlocks:
    """Like `QueryBlocks`, for a gallery with virtual items; nothing is reordered, and both products are computed."""

    def __init__(self, gallery: MixedGallery, queries: Tensor) -> None:
        self.gallery, self.queries = gallery, queries
        self.columns = torch.arange(len(gallery), device=queries.device)
        self.gradient = torch.zeros_like(gallery.embeddings)

    def __len__(self) -> int:
        return len(self.gallery)

    def similarities(self, start: int, stop: int, scale: float, out: Tensor) -> Tensor:
        """See `QueryBlocks.similarities`."""
        return self.gallery.similarities(self.gallery.embeddings_at(self.queries[start:stop]) * scale, out=out)

    def accumulate_gradient(self, start: int, stop: int, similarity_gradient: Tensor, active: Tensor | None) -> None:
        """See `QueryBlocks.accumulate_gradient`."""
        indices = self.queries[start:stop]
        if active is not None and len(active) < MIN_ACTIVE * (stop - start):
            indices, similarity_gradient = indices[active], similarity_gradient[active]
        query_embeddings = self.gallery.embeddings_at(indices)
        self.gallery.accumulate_gradient(self.gradient, indices, query_embeddings, similarity_gradient)

    def embedding_gradient(self) -> Tensor:
        """See `QueryBlocks.embedding_gradient`."""
        return self.gradient


def make_query_blocks(
    embeddings: Tensor, pairs: VirtualPairs | None, queries: Tensor, block_size: int
) -> QueryBlocks | MixedQueryBlocks:
    """Returns the queries of a batch, with the virtual items of `pairs` in the gallery if there are any."""
    if pairs is None:
        return QueryBlocks(embeddings, queries, block_size)
    return MixedQueryBlocks(MixedGallery(embeddings, pairs), queries)
