"""SiMix: similarity mixup, virtual examples between two images of a class."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_recall.virtual_pairs import VirtualPairs, mix_embeddings, same_class_pairs


class SimilarityMixup(nn.Module):
    """Appends a virtual example for every pair of a class, with its similarities mixed from theirs.

    A pair (x, z) and alpha ~ U(0, 1) give a virtual item v whose similarity to any item w is

        s_vw = alpha s_xw + (1 - alpha) s_zw

    Similarities are dot products, hence linear, and s_vw is the dot product with alpha e_x + (1 - alpha) e_z, which is
    what is appended: not scaled back to unit length. Virtual items take their class's label, and are queries and
    database items like the others.

    Source: Patel, Tolias, Matas, CVPR 2022 (arXiv 2108.11179), section 3.3.

    A class of m items gains m (m - 1) / 2 virtual ones; a class of one gains none. The draws are a sequence of their
    own, told by `seed` and kept in the state: the same in all processes and after a resume, and torch's random numbers
    are not touched.

    Args:
        max_virtual_per_class: most virtual items that a class gains, chosen at random, from 1 (16 items make 120
            pairs, 100 items 4,950); None: all.
        seed: of the draws.

    Shapes: embeddings (N, D), labels (N,) -> embeddings (N + M, D), labels (N + M,), the given ones first.

    Raises:
        ValueError: for a `max_virtual_per_class` below 1, and labels that are not integers or of another length than
            embeddings.

    >>> embeddings, labels = SimilarityMixup()(torch.eye(3), torch.tensor([7, 7, 8]))
    >>> embeddings.shape, labels
    (torch.Size([4, 3]), tensor([7, 7, 8, 7]))
    """

    def __init__(self, max_virtual_per_class: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.max_virtual_per_class = max_virtual_per_class
        self.generator = torch.Generator().manual_seed(seed)
        self.check_settings()

    def check_settings(self) -> None:
        """Raises ValueError for settings out of range; called by every draw, since settings may change."""
        most = self.max_virtual_per_class
        if most is not None and not most >= 1:
            raise ValueError(f"max_virtual_per_class must be at least 1, or None for all, got {most}.")

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D) and labels (N,), the virtual ones appended."""
        for name, given in (("embeddings", embeddings), ("labels", labels)):
            check_tensor(name, given)
        if embeddings.ndim != 2 or not embeddings.is_floating_point():
            raise ValueError(
                f"embeddings must be floating point of shape (N, D), got {embeddings.dtype} {tuple(embeddings.shape)}."
            )
        if labels.shape[:1] != embeddings.shape[:1]:
            raise ValueError(
                f"labels must hold one label per embedding, shape ({len(embeddings)},), got {tuple(labels.shape)}."
            )
        pairs = self.draw(labels)
        labels = labels.long()
        return mix_embeddings(embeddings, pairs), torch.cat([labels, labels[pairs.first]])

    def draw(self, labels: Tensor) -> VirtualPairs:
        """VirtualPairs of equal labels (N,), at most `max_virtual_per_class` of a class, and their alphas, on its device."""
        self.check_settings()
        check_tensor("labels", labels)
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"labels must be integers of shape (N,), got {labels.dtype} {tuple(labels.shape)}.")
        labels = labels.long()
        first, second = same_class_pairs(labels)
        if self.max_virtual_per_class is not None:
            kept = torch.randperm(len(first), generator=self.generator).to(labels.device)
            kept = kept[torch.argsort(labels[first[kept]], stable=True)]  # by class, at random within it
            _, counts = torch.unique_consecutive(labels[first[kept]], return_counts=True)
            starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
            kept = kept[torch.arange(len(first), device=labels.device) - starts < self.max_virtual_per_class]
            first, second = first[kept], second[kept]
        alpha = torch.rand(len(first), generator=self.generator, dtype=torch.float64)
        return VirtualPairs(first, second, alpha.to(labels.device))

    def get_extra_state(self) -> Tensor:
        """Where the sequence of draws stands."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Takes up the sequence of draws."""
        self.generator.set_state(state.cpu())


def check_tensor(name: str, given: Any) -> None:
    """Raises ValueError for lists, arrays and whatever else is no tensor."""
    if not isinstance(given, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(given).__name__}: convert with torch.as_tensor.")
