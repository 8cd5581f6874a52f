"""Virtual items of SiMix: each is a mixture of two items of the same class."""

from typing import NamedTuple

import torch
from torch import Tensor


class VirtualPairs(NamedTuple):
    """The pairs of real items from which M virtual items are mixed.

    The two items of a pair are in the same class. Their mixture is the virtual item alpha e_x + (1 - alpha) e_z, with
    e_x the embedding of the first item and e_z that of the second.

    Attributes:
        first: (M,) index of the first item.
        second: (M,) index of the second item.
        alpha: (M,) weight of the first item, in [0, 1]; the second has 1 - alpha.
    """

    first: Tensor
    second: Tensor
    alpha: Tensor


def same_class_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns all unordered pairs of different items with the same label, as two index tensors (M,).

    Args:
        labels: (N,) integers.
    """
    order = torch.argsort(labels, stable=True)
    ordered = labels[order]
    largest = int(torch.unique_consecutive(ordered, return_counts=True)[1].max()) if len(labels) else 0
    first, second = [order[:0]], [order[:0]]
    for step in range(1, largest):  # items of a class are adjacent: pair each with the item `step` positions later
        matches = torch.nonzero(ordered[:-step] == ordered[step:]).squeeze(1)
        first.append(order[matches])
        second.append(order[matches + step])
    return torch.cat(first), torch.cat(second)


def mix_similarities(similarities: Tensor, pairs: VirtualPairs) -> Tensor:
    """Similarities of real and virtual items, interpolated from those of the real items, as in the SiMix paper.

    A virtual item v between x and z has the similarity s_vw = alpha s_xw + (1 - alpha) s_zw to any item w. The
    similarity of two virtual items is bilinear in both alphas. These similarities equal the dot products of the
    embeddings that `mix_embeddings` returns.

    Args:
        similarities: (N, N) between the real items.
        pairs: the M virtual items.

    Returns:
        (N + M, N + M), real items first.
    """
    alpha = pairs.alpha.to(similarities.dtype)
    virtual_to_real = torch.lerp(similarities[pairs.second], similarities[pairs.first], alpha[:, None])  # (M, N)
    all_to_real = torch.cat([similarities, virtual_to_real])  # (N + M, N)
    all_to_virtual = torch.lerp(all_to_real[:, pairs.second], all_to_real[:, pairs.first], alpha)  # (N + M, M)
    return torch.cat([all_to_real, all_to_virtual], 1)


def mix_embeddings(embeddings: Tensor, pairs: VirtualPairs) -> Tensor:
    """Appends the mixture alpha e_x + (1 - alpha) e_z of each of the M pairs, without normalising it.

    Args:
        embeddings: (N, D) of the real items.
        pairs: the M virtual items.

    Returns:
        (N + M, D), real items first.
    """
    alpha = pairs.alpha.to(embeddings.dtype)[:, None]
    return torch.cat([embeddings, torch.lerp(embeddings[pairs.second], embeddings[pairs.first], alpha)])


def append_virtual_labels(labels: Tensor, pairs: VirtualPairs | None) -> Tensor:
    """Returns the labels (N + M,) of the real and the virtual items.

    A virtual item has the label of its pair. If `pairs` is None, returns `labels`.
    """
    return labels if pairs is None else torch.cat([labels, labels[pairs.first]])
