"""The gallery of a batch: its embeddings and the virtual items mixed from them; similarities and their gradient."""

import torch
from torch import Tensor

from lightning_recall.virtual_pairs import VirtualPairs

STORED_ELEMENTS = 2**22  # similarity gradients kept until those of the transposed pairs are known (16 MiB in fp32)
MIN_ACTIVE = 0.5  # below this fraction of queries with a gradient, two products of their rows are faster


class Gallery:
    """Gallery of N embeddings (N, D), searched by consecutive blocks of queries.

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
        self.columns = torch.empty_like(order).scatter_(0, order, columns)
        self.embeddings = embeddings[order]
        self.gradient = torch.zeros_like(embeddings)
        self.num_queries, self.block_size = len(queries), block_size
        # queries per group of blocks whose pairs are added: a quarter of a group's matrix is stored at most
        self.group_size = max(int((4 * STORED_ELEMENTS) ** 0.5) // block_size, 1) * block_size
        self.stored: dict[int, list[tuple[slice, Tensor]]] = {}  # start of a block -> earlier queries and W (B, b)

    def __len__(self) -> int:
        return len(self.columns)

    def similarities(self, start: int, stop: int, scale: float, out: Tensor) -> Tensor:
        """Scaled dot products of the queries from `start` to `stop` with every item, written to `out` (q, len(self))."""
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
        return self.gradient[self.columns]


class MixedGallery:
    """Gallery of N embeddings (N, D) and M virtual items: item N + m is the mixture of pair m.

    Similarities to virtual items are mixed from those to the real items, so matrix products have only N columns. The
    interface is that of `Gallery`.
    """

    def __init__(self, embeddings: Tensor, queries: Tensor, pairs: VirtualPairs) -> None:
        self.embeddings = embeddings
        self.queries = queries
        self.num_real = len(embeddings)
        self.pairs = pairs._replace(alpha=pairs.alpha.to(embeddings.dtype))
        real = torch.arange(self.num_real, device=pairs.first.device)
        # (N + M,): a real item is a mixture of itself with itself, with alpha = 1
        self.first, self.second = torch.cat([real, pairs.first]), torch.cat([real, pairs.second])
        self.alpha = torch.cat([embeddings.new_ones(self.num_real), self.pairs.alpha])
        self.columns = torch.arange(len(self.alpha), device=queries.device)
        self.gradient = torch.zeros_like(embeddings)

    def __len__(self) -> int:
        return len(self.alpha)

    def query_embeddings(self, start: int, stop: int) -> Tensor:
        """Embeddings (q, D) of the queries from `start` to `stop`."""
        indices = self.queries[start:stop]
        alpha = self.alpha[indices, None]
        return torch.lerp(self.embeddings[self.second[indices]], self.embeddings[self.first[indices]], alpha)

    def similarities(self, start: int, stop: int, scale: float, out: Tensor) -> Tensor:
        """See `Gallery.similarities`."""
        real, virtual = torch.split(out, [self.num_real, len(self.pairs.alpha)], 1)
        torch.mm(self.query_embeddings(start, stop) * scale, self.embeddings.T, out=real)
        first, second = (
            real.gather(1, indices.expand(stop - start, -1)) for indices in (self.pairs.first, self.pairs.second)
        )  # (q, M)
        torch.lerp(second, first, self.pairs.alpha, out=virtual)
        return out

    def accumulate_gradient(self, start: int, stop: int, similarity_gradient: Tensor, active: Tensor | None) -> None:
        """See `Gallery.accumulate_gradient`; the gradient of a virtual item goes to the two items of its pair."""
        indices, query_embeddings = self.queries[start:stop], self.query_embeddings(start, stop)
        if active is not None and len(active) < MIN_ACTIVE * (stop - start):
            indices, query_embeddings = indices[active], query_embeddings[active]
            similarity_gradient = similarity_gradient[active]
        real, virtual = torch.split(similarity_gradient, [self.num_real, len(self.pairs.alpha)], 1)
        to_first = virtual * self.pairs.alpha
        real.index_add_(1, self.pairs.first, to_first)
        real.index_add_(1, self.pairs.second, virtual - to_first)
        self.gradient.addmm_(real.T, query_embeddings)
        query_gradient = real @ self.embeddings  # (Q, D)
        query_alpha = self.alpha[indices, None]
        self.gradient.index_add_(0, self.first[indices], query_gradient * query_alpha)
        self.gradient.index_add_(0, self.second[indices], query_gradient * (1 - query_alpha))

    def embedding_gradient(self) -> Tensor:
        """See `Gallery.embedding_gradient`."""
        return self.gradient


def make_gallery(
    embeddings: Tensor, pairs: VirtualPairs | None, queries: Tensor, block_size: int
) -> Gallery | MixedGallery:
    """Returns the gallery of a batch, with the virtual items of `pairs` if there are any."""
    return Gallery(embeddings, queries, block_size) if pairs is None else MixedGallery(embeddings, queries, pairs)
