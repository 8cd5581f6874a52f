"""SiMix: similarity mixup, virtual examples interpolated between two images of the same class."""

import torch
from torch import Tensor, nn

from lightning_recall.checks import check_labelled_embeddings, check_labels
from lightning_recall.constructor_arguments import record_arguments
from lightning_recall.tensors import arange_within_groups
from lightning_recall.virtual_pairs import VirtualPairs, append_virtual_labels, mix_embeddings, same_class_pairs


@record_arguments
class SimilarityMixup(nn.Module):
    """Appends one virtual example for every pair of same-class items; its similarities interpolate those of the pair.

    A pair (x, z) and alpha ~ U(0, 1) give a virtual item v whose similarity to any item w is

        s_vw = alpha s_xw + (1 - alpha) s_zw

    Similarities are dot products, hence linear: s_vw is the dot product of e_w and alpha e_x + (1 - alpha) e_z. This
    vector is appended without normalisation. Virtual items have the label of their pair and serve as queries and
    gallery items.

    Source: Patel, Tolias, Matas, CVPR 2022 (arXiv 2108.11179), section 3.3.

    A class of m items gains m (m - 1) / 2 virtual items; a class of one gains none. Uses its own generator, seeded by
    `seed` and saved in the state_dict, so draws are the same on all processes and after resuming. The global random
    generator is not used.

    Args:
        max_virtual_per_class: maximum number of virtual items per class, at least 1; a random subset is kept. None
            keeps all: 16 items give 120 pairs, 100 items give 4,950.
        seed: seed of the random generator.

    Shapes: embeddings (N, D), labels (N,) -> embeddings (N + M, D), labels (N + M,), real items first.

    Raises:
        ValueError: if `max_virtual_per_class` is below 1, embeddings are not floating point (N, D), labels are not
            integers, or labels and embeddings differ in length or device.

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
        maximum = self.max_virtual_per_class
        if maximum is not None and not maximum >= 1:
            raise ValueError(f"max_virtual_per_class must be at least 1, or None for all, got {maximum}.")

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the virtual items to embeddings (N, D) and labels (N,)."""
        check_labelled_embeddings(embeddings, labels)
        pairs = self.draw(labels)
        return mix_embeddings(embeddings, pairs), append_virtual_labels(labels.long(), pairs)

    def draw(self, labels: Tensor) -> VirtualPairs:
        """Draws same-class pairs, at most `max_virtual_per_class` per class, and their alphas.

        Args:
            labels: (N,) integers.

        Returns:
            The pairs, on the device of the labels; alphas are float64.
        """
        self.check_settings()
        check_labels(labels)
        labels = labels.long()
        first, second = same_class_pairs(labels)
        if self.max_virtual_per_class is not None:
            kept = torch.randperm(len(first), generator=self.generator).to(labels.device)
            kept = kept[torch.argsort(labels[first[kept]], stable=True)]  # sorted by class, shuffled within it
            _, counts = torch.unique_consecutive(labels[first[kept]], return_counts=True)
            kept = kept[arange_within_groups(counts) < self.max_virtual_per_class]
            first, second = first[kept], second[kept]
        alpha = torch.rand(len(first), generator=self.generator, dtype=torch.float64)
        return VirtualPairs(first, second, alpha.to(labels.device))

    def get_extra_state(self) -> Tensor:
        """Returns the state of the random generator."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restores the state of the random generator."""
        self.generator.set_state(state.cpu())
