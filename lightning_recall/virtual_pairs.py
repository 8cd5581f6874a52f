"""Virtual items: mixtures of two items of one class, as SiMix draws them."""

from typing import NamedTuple

import torch
from torch import Tensor


class VirtualPairs(NamedTuple):
    """M virtual items, each a mixture of two items of a batch that share a class.

    Attributes:
        first: (M,) index of the first item.
        second: (M,) index of the second item.
        alpha: (M,) weight of the first item, in [0, 1]; the second has 1 - alpha.
    """

    first: Tensor
    second: Tensor
    alpha: Tensor


def same_class_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """All unordered pairs of different rows with equal labels (N,), as two index vectors (M,)."""
    order = torch.argsort(labels, stable=True)
    ordered = labels[order]
    largest = int(torch.unique_consecutive(ordered, return_counts=True)[1].max()) if len(labels) else 0
    first, second = [order[:0]], [order[:0]]
    for step in range(1, largest):  # rows of a class stand side by side: partners are 1, 2, ... places away
        here = torch.nonzero(ordered[:-step] == ordered[step:]).squeeze(1)
        first.append(order[here])
        second.append(order[here + step])
    return torch.cat(first), torch.cat(second)


def mix_similarities(similarities: Tensor, pairs: VirtualPairs) -> Tensor:
    """Similarities of real and virtual items, mixed from those of the real ones: SiMix as the paper writes it.

    A virtual v between x and z has s_vw = alpha s_xw + (1 - alpha) s_zw to any w, and two virtual items mix both ways,
    bilinearly. `mix_embeddings` gives items with just these dot products.

    Args:
        similarities: (N, N) of the real items.
        pairs: M virtual ones.

    Returns:
        (N + M, N + M), the real ones first.
    """
    alpha = pairs.alpha.to(similarities.dtype)
    rows = torch.lerp(similarities[pairs.second], similarities[pairs.first], alpha[:, None])  # (M, N)
    both = torch.cat([similarities, rows])  # (N + M, N)
    columns = torch.lerp(both[:, pairs.second], both[:, pairs.first], alpha)  # (N + M, M)
    return torch.cat([both, columns], 1)


def mix_embeddings(embeddings: Tensor, pairs: VirtualPairs) -> Tensor:
    """Embeddings (N, D) with alpha e_x + (1 - alpha) e_z appended for each of M pairs: (N + M, D), not normalised."""
    alpha = pairs.alpha.to(embeddings.dtype)[:, None]
    return torch.cat([embeddings, torch.lerp(embeddings[pairs.second], embeddings[pairs.first], alpha)])


def labels_with_virtual(labels: Tensor, pairs: VirtualPairs | None) -> Tensor:
    """Labels (N + M,) of the N real items and of the M virtual ones, which have the class of their two items."""
    return labels if pairs is None else torch.cat([labels, labels[pairs.first]])
