"""Compares embeddings that are computed again with those in a folder: other images or another model show so."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_recall.callbacks.embedding_files import load_shard, shard_paths

NUM_CHECKED = 16  # rows of a folder that are embedded again
# The largest distance, relative to the embedding's length, that counts as rounding. Batches of other sizes and other
# processes have kernels sum in another order: 1e-6 in fp32, 1e-3 in TF32, and about 1e-2 after the layers of a network
# in fp16 or bf16, whose steps are up to 4e-3. Embeddings of two images of a trained model differ by more than 0.1.
TOLERANCE, TOLERANCE_16_BIT = 1e-2, 3e-2


class SavedRows(NamedTuple):
    """Rows (m,) of a data set, ascending, and their embeddings (m, D) in a folder."""

    ids: Tensor
    embeddings: Tensor

    def places(self, ids: Tensor) -> Tensor:
        """Where each of some rows (b,) is among these, -1 if it is not."""
        places = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[places] == ids, places, -1)


def saved_ids(folder: Path) -> Tensor:
    """All rows (m,) that a folder holds, ascending, each once."""
    parts = [load_shard(path)["ids"] for path in shard_paths(folder)]
    ids: Tensor = torch.unique(torch.cat([torch.empty(0, dtype=torch.int64), *parts]))  # sorted
    return ids


def evenly_spaced(ids: Tensor) -> Tensor:
    """Up to `NUM_CHECKED` of some rows, with the first and the last."""
    return ids[torch.linspace(0, len(ids) - 1, min(NUM_CHECKED, len(ids))).round().long()]


def saved_rows(folder: Path, ids: Tensor) -> SavedRows:
    """The embeddings of some rows (m,), ascending, that a folder holds."""
    found: Tensor | None = None
    for path in reversed(shard_paths(folder)):  # the first file counts, as in load_embeddings
        shard = load_shard(path)
        wanted = torch.isin(shard["ids"], ids)
        embeddings = shard["embeddings"]
        found = embeddings.new_empty(len(ids), *embeddings.shape[1:]) if found is None else found
        found[torch.searchsorted(ids, shard["ids"][wanted])] = embeddings[wanted]
    assert found is not None  # there are rows
    return SavedRows(ids, found)


def check_same(saved: SavedRows, ids: Tensor, embeddings: Tensor, folder: Path, precision: str) -> Tensor:
    """Which rows (b,) of a batch are saved, after their embeddings (b, D) are compared with the saved ones.

    Raises:
        ValueError: if one differs by more than rounding.
    """
    places = saved.places(ids)
    is_saved = places >= 0
    old, new = saved.embeddings[places[is_saved]], embeddings[is_saved]
    if old.shape != new.shape:
        differ, how = (
            torch.ones(len(new), dtype=torch.bool),
            f"has {new.shape[1]} numbers, not the {old.shape[1]} of the one",
        )
    else:
        old, new = (torch.nan_to_num(part.double()) for part in (old, new))
        distance = (new - old).norm(dim=1) / old.norm(dim=1).clamp(min=1e-12)
        differ = distance > (TOLERANCE_16_BIT if "16" in precision else TOLERANCE)
        how = f"differs by {100 * distance[differ][0]:.3g} % of its length from the one" if differ.any() else ""
    if differ.any():
        raise ValueError(
            f"The embedding of row {int(ids[is_saved][differ][0])} {how} in {folder}: the folder was made with "
            "another model or other data, or predict_step gives random results. Choose another folder, or delete it."
        )
    return is_saved
