"""Collects the embeddings of one dataloader, compares them with saved ones and writes them to its folder."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lightning_recall.callbacks.embedding_check import ReferenceEmbeddings, compare_with_reference
from lightning_recall.callbacks.output import file_name
from lightning_recall.embedding_sets.shards import save_shard


class EmbeddingFolder:
    """The embeddings of one dataloader: those saved in its folder, and those not yet written.

    Args:
        path: the folder.
        format: "npz" or "safetensors".
        reference: saved embeddings to compare with; None if the folder holds none.

    Attributes:
        pending: parts that are not yet written: embeddings (b, D), ids (b,) and, if known, labels (b,).
        has_compared: whether at least one saved embedding was compared.
    """

    def __init__(
        self,
        path: Path,
        format: Literal["npz", "safetensors"],  # noqa: A002  # shadows the builtin on purpose
        reference: ReferenceEmbeddings | None = None,
    ) -> None:
        self.path = path
        self.format = format
        self.reference = reference
        self.pending: list[dict[str, Tensor]] = []
        self.has_compared = False

    @property
    def may_write(self) -> bool:
        """Whether embeddings may be written: the folder is empty, or a saved embedding has been compared."""
        return self.reference is None or self.has_compared

    @property
    def num_pending(self) -> int:
        """Number of items that are not yet written."""
        return sum(len(part["ids"]) for part in self.pending)

    def add(self, part: dict[str, Tensor], precision: str) -> None:
        """Compares already saved items of a batch with their saved embeddings, and collects the others.

        Args:
            part: embeddings (b, D), ids (b,) and, if known, labels (b,).
            precision: the Trainer's precision, on which the tolerance depends.

        Raises:
            ValueError: if an embedding differs from the saved one.
        """
        if self.reference is not None:
            is_saved = compare_with_reference(self.reference, part["ids"], part["embeddings"], self.path, precision)
            self.has_compared |= bool(is_saved.any())
            part = {name: values[~is_saved] for name, values in part.items()}
        if len(part["ids"]):
            self.pending.append(part)

    def write(self, rank: int, state_hash: str) -> None:
        """Writes the pending embeddings to one shard of this rank, with the state hash."""
        if self.pending:
            arrays = {name: torch.cat([part[name] for part in self.pending]) for name in self.pending[0]}
            self.pending = []
            save_shard(self.path, rank, self.format, arrays, state_hash)


def folder_names(names: list[str]) -> list[str]:
    """Unique folder names for dataloaders, without characters that are special in paths."""
    folders: list[str] = []
    for name in names:
        folder = file_name(name).strip(".") or ("_" if name else "")
        while folder in folders:
            folder += "_"
        folders.append(folder)
    return folders


def to_storable(embeddings: Tensor) -> Tensor:
    """Copies embeddings to the CPU, contiguous; bf16 is cast to fp32, since NumPy lacks it."""
    embeddings = embeddings.float() if embeddings.dtype == torch.bfloat16 else embeddings
    return embeddings.cpu().contiguous()
