"""Compares recomputed embeddings with saved ones, to detect a changed model or changed images."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.callbacks.embedding_files import load_shard, shard_paths

NUM_CHECKED = 16  # saved items that are computed again
# The largest distance, relative to the norm of the embedding, that counts as rounding. Other batch sizes and process
# counts change the order of summation: 1e-6 in fp32, 1e-3 in TF32, and about 1e-2 after the layers of a network in fp16
# or bf16, whose relative rounding error is up to 4e-3. Embeddings of two images of a trained model differ by more than
# 0.1.
TOLERANCE, TOLERANCE_16_BIT = 1e-2, 3e-2


class ReferenceEmbeddings(NamedTuple):
    """Sorted indices (m,) of a data set, and their saved embeddings (m, D)."""

    ids: Tensor
    embeddings: Tensor

    def positions(self, ids: Tensor) -> Tensor:
        """Position of each id (b,) in `self.ids`, or -1."""
        if len(self.ids) == 0:
            return torch.full_like(ids, -1)
        positions = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[positions] == ids, positions, -1)


def saved_ids(folder: Path) -> Tensor:
    """All ids (m,) saved in a folder, sorted and unique."""
    parts = [load_shard(path)["ids"] for path in shard_paths(folder)]
    ids: Tensor = torch.unique(torch.cat([torch.empty(0, dtype=torch.int64), *parts]))  # sorted
    return ids


def evenly_spaced(ids: Tensor) -> Tensor:
    """Up to `NUM_CHECKED` evenly spaced ids, including the first and the last."""
    return ids[torch.linspace(0, len(ids) - 1, min(NUM_CHECKED, len(ids))).round().long()]


def load_reference(folder: Path, ids: Tensor) -> ReferenceEmbeddings:
    """Loads the saved embeddings of sorted ids (m,) from a folder that holds them."""
    embeddings: Tensor | None = None
    for path in reversed(shard_paths(folder)):  # the first file takes precedence, as in load_embeddings
        shard = load_shard(path)
        is_wanted = torch.isin(shard["ids"], ids)
        if embeddings is None:
            embeddings = shard["embeddings"].new_empty(len(ids), *shard["embeddings"].shape[1:])
        embeddings[torch.searchsorted(ids, shard["ids"][is_wanted])] = shard["embeddings"][is_wanted]
    assert embeddings is not None  # the folder has shards
    return ReferenceEmbeddings(ids, embeddings)


def compare_with_reference(
    reference: ReferenceEmbeddings, ids: Tensor, embeddings: Tensor, folder: Path, precision: str
) -> Tensor:
    """Compares the embeddings (b, D) of a batch with the reference; returns a mask (b,) of those in the reference.

    Raises:
        ValueError: if an embedding differs by more than the rounding tolerance.
    """
    positions = reference.positions(ids)
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
            f"The embedding of item {int(ids[is_saved][differs][0])} {difference}, in {folder}: the folder was made "
            "with another model or other data, or predict_step gives random results. Choose another folder, or delete "
            "it."
        )
    return is_saved
