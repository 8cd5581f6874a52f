"""SiMix: similarity mixup, virtual examples between two images of a class."""

import torch
from torch import Tensor, nn


def same_class_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """All unordered pairs of different rows with equal labels, as two index vectors (M,)."""
    order = torch.argsort(labels, stable=True)
    ordered = labels[order]
    largest = int(torch.unique_consecutive(ordered, return_counts=True)[1].max()) if len(labels) else 0
    first, second = [], []
    for step in range(1, largest):  # rows of a class stand side by side: partners are 1, 2, ... places away
        here = torch.nonzero(ordered[:-step] == ordered[step:]).squeeze(1)
        first.append(order[here])
        second.append(order[here + step])
    none = order[:0]
    return torch.cat([none, *first]), torch.cat([none, *second])


class SimilarityMixup(nn.Module):
    """Appends a virtual example for every pair of a class, with its similarities mixed from theirs.

    A pair (x, z) and alpha ~ U(0, 1) give a virtual item v whose similarity to any item w is

        s_vw = alpha s_xw + (1 - alpha) s_zw

    Similarities are dot products, hence linear, and s_vw is the dot product with alpha e_x + (1 - alpha) e_z, which is
    what is appended: not scaled back to unit length. Virtual items take their class's label, and are queries and
    database items like the others.

    Source: Patel, Tolias, Matas, CVPR 2022 (arXiv 2108.11179), section 3.3.

    A class of m items gains m (m - 1) / 2 virtual ones; a class of one gains none.

    Args:
        generator: draws alpha; None: torch's default generator of the embeddings' device.

    Shapes: embeddings (N, D), labels (N,) -> embeddings (N + M, D), labels (N + M,), the given ones first.

    >>> embeddings, labels = SimilarityMixup()(torch.eye(3), torch.tensor([7, 7, 8]))
    >>> embeddings.shape, labels
    (torch.Size([4, 3]), tensor([7, 7, 8, 7]))
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D) and labels (N,), the virtual ones appended."""
        if labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"labels must hold one label per embedding, shape ({len(embeddings)},), got {tuple(labels.shape)}."
            )
        first, second = same_class_pairs(labels)
        alpha = torch.rand((len(first), 1), dtype=embeddings.dtype, device=embeddings.device, generator=self.generator)
        virtual = torch.lerp(embeddings[second], embeddings[first], alpha)  # (M, D)
        return torch.cat([embeddings, virtual]), torch.cat([labels, labels[first]])
