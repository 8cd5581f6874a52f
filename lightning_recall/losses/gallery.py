"""What a batch is searched among: its embeddings, and virtual items between two of them."""

import torch
from torch import Tensor

VirtualPairs = tuple[Tensor, Tensor, Tensor]
"""M virtual items: rows of the first and of the second real item, and the share of the first, all (M,)."""


class Gallery:
    """Items to search, N embeddings (N, D); each can also query."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings = embeddings

    def __len__(self) -> int:
        return len(self.embeddings)

    def rows(self, queries: Tensor) -> Tensor:
        """Embeddings (Q, D) of some items (Q,)."""
        return self.embeddings[queries]

    def similarities(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Dot products (Q, len) of embeddings (Q, D) with every item; `out`, if given, takes them."""
        return torch.mm(rows, self.embeddings.T, out=out)

    def add_gradient(self, gradient: Tensor, queries: Tensor, rows: Tensor, weights: Tensor) -> None:
        """Adds into `gradient` (N, D) what derivatives `weights` (Q, len) by the similarities of `queries` give."""
        gradient.addmm_(weights.T, rows)
        gradient.index_add_(0, queries, weights @ self.embeddings)


class MixedGallery(Gallery):
    """N embeddings (N, D) and M virtual items between two of them: item N + m is the mixture of pair m.

    The similarities to virtual items are mixed from those to the real ones, so that matrix products have N columns
    and not N + M.
    """

    def __init__(self, embeddings: Tensor, pairs: VirtualPairs) -> None:
        super().__init__(embeddings)
        first, second, share = pairs
        self.num_real = len(embeddings)
        real = torch.arange(self.num_real, device=first.device)  # a real item is all of itself
        self.first, self.second = torch.cat([real, first]), torch.cat([real, second])  # (N + M,)
        self.share = torch.cat([embeddings.new_ones(self.num_real), share.to(embeddings.dtype)])

    def __len__(self) -> int:
        return len(self.share)

    def rows(self, queries: Tensor) -> Tensor:
        """Embeddings (Q, D) of some items (Q,)."""
        share = self.share[queries, None]
        return torch.lerp(self.embeddings[self.second[queries]], self.embeddings[self.first[queries]], share)

    def similarities(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Dot products (Q, N + M) of embeddings (Q, D) with every item; `out`, if given, takes them."""
        first, second, share = (part[self.num_real :] for part in (self.first, self.second, self.share))
        real = rows @ self.embeddings.T
        one, other = (real.gather(1, columns.expand(len(rows), -1)) for columns in (first, second))
        return torch.cat([real, other.lerp_(one, share)], 1, out=out)

    def add_gradient(self, gradient: Tensor, queries: Tensor, rows: Tensor, weights: Tensor) -> None:
        """Adds into `gradient` (N, D) what derivatives `weights` (Q, N + M) by the similarities give."""
        first, second, share = (part[self.num_real :] for part in (self.first, self.second, self.share))
        real, virtual = torch.split(weights, [self.num_real, len(share)], 1)
        real = real.contiguous()
        real.index_add_(1, first, virtual * share)
        real.index_add_(1, second, virtual * (1 - share))
        gradient.addmm_(real.T, rows)
        by_row = real @ self.embeddings  # (Q, D)
        share = self.share[queries, None]
        gradient.index_add_(0, self.first[queries], by_row * share)
        gradient.index_add_(0, self.second[queries], by_row * (1 - share))
