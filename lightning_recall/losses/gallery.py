"""The gallery of a batch: its embeddings and the virtual items mixed from them."""

import torch
from torch import Tensor

from lightning_recall.virtual_pairs import VirtualPairs


class Gallery:
    """Gallery of N embeddings (N, D); every item can also be a query."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings = embeddings

    def __len__(self) -> int:
        return len(self.embeddings)

    def embeddings_at(self, indices: Tensor) -> Tensor:
        """Embeddings (Q, D) of the items at `indices` (Q,)."""
        return self.embeddings[indices]

    def similarities(self, query_embeddings: Tensor, out: Tensor | None = None) -> Tensor:
        """Dot products (Q, len(self)) of query embeddings (Q, D) with every item, written to `out` if given."""
        return torch.mm(query_embeddings, self.embeddings.T, out=out)

    def accumulate_gradient(
        self, gradient: Tensor, indices: Tensor, query_embeddings: Tensor, similarity_gradient: Tensor
    ) -> None:
        """Backpropagates the gradient of the similarities and accumulates it into `gradient` (N, D).

        Args:
            gradient: (N, D), with respect to the embeddings.
            indices: (Q,) of the queries.
            query_embeddings: (Q, D) embeddings of the queries.
            similarity_gradient: (Q, len(self)), with respect to the similarities of the queries.
        """
        gradient.addmm_(similarity_gradient.T, query_embeddings)
        gradient.index_add_(0, indices, similarity_gradient @ self.embeddings)


class MixedGallery(Gallery):
    """Gallery of N embeddings (N, D) and M virtual items: item N + m is the mixture of pair m.

    Similarities to virtual items are mixed from those to the real items, so matrix products have only N columns.
    """

    def __init__(self, embeddings: Tensor, pairs: VirtualPairs) -> None:
        super().__init__(embeddings)
        self.num_real = len(embeddings)
        self.pairs = pairs._replace(alpha=pairs.alpha.to(embeddings.dtype))
        real = torch.arange(self.num_real, device=pairs.first.device)
        # (N + M,): a real item is a mixture of itself with itself, with alpha = 1
        self.first, self.second = torch.cat([real, pairs.first]), torch.cat([real, pairs.second])
        self.alpha = torch.cat([embeddings.new_ones(self.num_real), self.pairs.alpha])

    def __len__(self) -> int:
        return len(self.alpha)

    def embeddings_at(self, indices: Tensor) -> Tensor:
        """Embeddings (Q, D) of the items at `indices` (Q,)."""
        alpha = self.alpha[indices, None]
        return torch.lerp(self.embeddings[self.second[indices]], self.embeddings[self.first[indices]], alpha)

    def similarities(self, query_embeddings: Tensor, out: Tensor | None = None) -> Tensor:
        """Dot products (Q, N + M) of query embeddings (Q, D) with every item, written to `out` if given."""
        if out is None:
            out = query_embeddings.new_empty(len(query_embeddings), len(self))
        real, virtual = out[:, : self.num_real], out[:, self.num_real :]
        torch.mm(query_embeddings, self.embeddings.T, out=real)
        first, second = (
            real.gather(1, indices.expand(len(query_embeddings), -1))
            for indices in (self.pairs.first, self.pairs.second)
        )  # (Q, M)
        torch.lerp(second, first, self.pairs.alpha, out=virtual)
        return out

    def accumulate_gradient(
        self, gradient: Tensor, indices: Tensor, query_embeddings: Tensor, similarity_gradient: Tensor
    ) -> None:
        """See `Gallery.accumulate_gradient`; the gradient of a virtual item goes to the two items of its pair."""
        first, second, alpha = self.pairs
        real, virtual = torch.split(similarity_gradient, [self.num_real, len(alpha)], 1)
        real = real.contiguous()
        real.index_add_(1, first, virtual * alpha)
        real.index_add_(1, second, virtual * (1 - alpha))
        gradient.addmm_(real.T, query_embeddings)
        query_gradient = real @ self.embeddings  # (Q, D)
        query_alpha = self.alpha[indices, None]
        gradient.index_add_(0, self.first[indices], query_gradient * query_alpha)
        gradient.index_add_(0, self.second[indices], query_gradient * (1 - query_alpha))


def make_gallery(embeddings: Tensor, pairs: VirtualPairs | None) -> Gallery:
    """Returns the gallery of a batch, with the virtual items of `pairs` if there are any."""
    return Gallery(embeddings) if pairs is None else MixedGallery(embeddings, pairs)
