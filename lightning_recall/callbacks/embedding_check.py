"""Compares recomputed embeddings with saved ones, to detect a changed model or changed images."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.embedding_sets.shards import load_shard, shard_paths

NUM_CHECKED = 16  # saved items that are computed again
# The largest distance, relative to the norm of the embedding, that counts as rounding. Other batch sizes and process
# counts change the order of summation: 1e-6 in fp32, 1e-3 in TF32, and about 1e-2 after the layers of a network in fp16
# or bf16, whose relative rounding error is up to 4e-3. A trained model's embeddings of two different images
# differ by more than 0.1.
TOLERANCE, TOLERANCE_16_BIT = 1e-2, 3e-2


class ReferenceEmbeddings(NamedTuple):
    """Sorted data set indices (m,), and their saved embeddings (m, D)."""

    indices: Tensor
    embeddings: Tensor

    def positions(self, indices: Tensor) -> Tensor:
        """Position of each index (b,) in `self.indices`, or -1."""
        if len(self.indices) == 0:
            return torch.full_like(indices, -1)
        positions = torch.searchsorted(self.indices, indices).clamp(max=len(self.indices) - 1)
        return torch.where(self.indices[positions] == indices, positions, -1)


def saved_indices(folder: Path) -> Tensor:
    """All indices (m,) saved in a folder, sorted and unique."""
    parts = [load_shard(path)["ids"] for path in shard_paths(folder)]
    indices: Tensor = torch.unique(torch.cat([torch.empty(0, dtype=torch.int64), *parts]))  # sorted
    return indices


def evenly_spaced(indices: Tensor) -> Tensor:
    """Up to `NUM_CHECKED` evenly spaced indices, including the first and the last."""
    return indices[torch.linspace(0, len(indices) - 1, min(NUM_CHECKED, len(indices))).round().long()]


def load_reference(folder: Path, indices: Tensor) -> ReferenceEmbeddings:
    """Loads the saved embeddings of sorted indices (m,) from a folder that holds them."""
    embeddings: Tensor | None = None
    for path in reversed(shard_paths(folder)):  # the first file takes precedence, as in load_embeddings
        shard = load_shard(path)
        is_wanted = torch.isin(shard["ids"], indices)
        if embeddings is None:
            embeddings = shard["embeddings"].new_empty(len(indices), *shard["embeddings"].shape[1:])
        embeddings[torch.searchsorted(indices, shard["ids"][is_wanted])] = shard["embeddings"][is_wanted]
    assert embeddings is not None  # the folder has shards
    return ReferenceEmbeddings(indices, embeddings)


def compare_with_reference(
    reference: ReferenceEmbeddings, indices: Tensor, embeddings: Tensor, folder: Path, precision: str
) -> Tensor:
    """Compares the embeddings (b, D) of a batch with the reference; returns a mask (b,) of those in the reference.

    Raises:
        ValueError: if an embedding differs by more than the rounding tolerance.
    """
    positions = reference.positions(indices)
    is_saved = positions >= 0
    old, new = reference.embeddings[positions[is_saved]], embeddings[is_saved]
    if old.shape != new.shape:
        differs = torch.ones(len(new), dtype=torch.bool)
        difference = f"has dimension {new.shape[1]}, but the saved one has dimension {old.shape[1]}"
    else:
        old, new = (torch.nan_to_num(part.double()) for part in (old, new))
        distance = (new - old).norm(dim=1) / old.norm(dim=1).clamp(min=1e-12)
        differs = distance > (TOLERANCE_16_BIT if "16" in precision else TOLERANCE)
        percent = f"{100 * distance[differs][0]:.3g}" if differs.any() else ""
        difference = f"differs from the saved one by {percent} % of its norm"
    if differs.any():
        raise ValueError(
            f"The embedding of item {int(indices[is_saved][differs][0])} {difference}, in {folder}: the folder was "
            "made with another model or other data, or predict_step gives random results. Choose another folder, or "
            "delete it."
        )
    return is_saved
