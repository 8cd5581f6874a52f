"""Keeps what `predict` computes, in files that an interrupted run goes on from."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_info
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from lightning_recall.callbacks.output import output_path, say_where

ABOUT = "about.json"  # of what the embeddings are


def load_embeddings(folder: str | Path) -> dict[str, Tensor]:
    """What `SavedEmbeddings` wrote: embeddings (N, D), ids (N,) and, if they were known, labels (N,), ordered by id.

    Raises:
        ValueError: if there is no such file in the folder.
    """
    shards = [load_shard(path) for path in shard_paths(Path(folder))]
    if not shards:
        raise ValueError(f"There are no embeddings in {folder}: it should hold files such as shard-00-00000.npz.")
    joined = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    order = joined["ids"].argsort(stable=True)
    ids = joined["ids"][order]
    order = order[torch.cat([ids[:1] == ids[:1], ids[1:] != ids[:-1]])]  # each once, if some were embedded again
    return {name: values[order] for name, values in joined.items()}


def shard_paths(folder: Path) -> list[Path]:
    """Files of embeddings in a folder."""
    return sorted(path for path in folder.glob("shard-*") if path.suffix in (".npz", ".safetensors"))


def load_shard(path: Path) -> dict[str, Tensor]:
    """The arrays of one file."""
    if path.suffix == ".safetensors":
        return load_file(path)
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


class SavedEmbeddings(BasePredictionWriter):
    """Writes what `predict` embeds to a folder: embeddings (n, D), ids (n,) and labels (n,), so many to a file.

    An id is a row of the data set. `load_embeddings(folder)` reads them all. With a folder of your own, a run that was
    interrupted goes on where its last whole file ends, also with another number of processes; a folder with embeddings
    of other weights is refused. Works with any module whose predict step returns embeddings (b, D), over batches
    (images, labels) or of images alone; several dataloaders have a folder each. Goes on only where the module or the
    data module makes the dataloaders, not where they are given to `trainer.predict`.

    Args:
        folder: where to write; None: `embeddings` in the run's folder, which each run has anew.
        format: "npz" or "safetensors".
        shard_size: images in a file, per process; what an interruption may lose at most.

    Raises:
        ValueError: for another format or a `shard_size` below 1, when the folder holds embeddings of other weights or
            data, and for predictions that are no embeddings.
    """

    def __init__(
        self,
        folder: str | None = None,
        format: Literal["npz", "safetensors"] = "npz",  # noqa: A002  # what else to call it
        shard_size: int = 100_000,
    ) -> None:
        super().__init__("batch")
        if format not in ("npz", "safetensors"):
            raise ValueError(f'format must be "npz" or "safetensors", got {format!r}.')
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}.")
        self.folder = folder
        self.format = format
        self.shard_size = shard_size
        self.root = Path()
        self.pending: dict[int, list[dict[str, Tensor]]] = {}  # of each dataloader, not yet written
        self.left: dict[int, Tensor] = {}  # rows (n,) of each dataloader's data set that are still to embed
        self.names: list[str] = [""]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has only what is not saved yet embedded."""
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        self.root = output_path(trainer, "embeddings") if self.folder is None else Path(self.folder)
        self.pending, self.left, self.names = {}, {}, [""]
        source: Any = trainer.datamodule or pl_module  # type: ignore[attr-defined]  # Lightning sets it
        if (self.root / ABOUT).exists():
            source.predict_dataloader = partial(self.remaining, source.predict_dataloader)  # hides the method

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has all embedded again the next time."""
        for source in (trainer.datamodule, pl_module):  # type: ignore[attr-defined]  # Lightning sets it
            hiding = vars(source).get("predict_dataloader") if source is not None else None
            if isinstance(hiding, partial) and hiding.func == self.remaining:
                del source.predict_dataloader

    def remaining(self, make: Any) -> Any:
        """The dataloaders without the rows that are saved."""
        loaders = make()
        several = isinstance(loaders, Mapping | list | tuple)
        pairs = loaders.items() if isinstance(loaders, Mapping) else enumerate(loaders if several else [loaders])
        shortened = {name: self.shortened(number, name, loader) for number, (name, loader) in enumerate(pairs)}
        if isinstance(loaders, Mapping):
            return shortened
        return list(shortened.values()) if several else shortened[0]

    def shortened(self, number: int, name: Any, loader: Any) -> Any:
        """A dataloader of the rows that are not saved yet."""
        folder = self.root / str(name) if (self.root / str(name)).is_dir() else self.root
        saved = [load_shard(path)["ids"] for path in shard_paths(folder)]
        if not saved:
            return loader
        if loader.batch_size is None:
            raise ValueError(f"Cannot go on from {folder}: a dataloader with a batch_sampler does not tell its rows.")
        rows = torch.arange(len(loader.dataset))
        self.left[number] = left = rows[~torch.isin(rows, torch.cat(saved))]
        rank_zero_info(f"{folder} holds {len(rows) - len(left):,} embeddings, {len(left):,} are left.")
        kept = ("batch_size", "num_workers", "collate_fn", "pin_memory", "worker_init_fn", "multiprocessing_context")
        settings = {setting: getattr(loader, setting) for setting in kept}
        return DataLoader(Subset(loader.dataset, left.tolist()), **settings)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a folder of other embeddings; notes of what these are."""
        loaders = trainer.predict_dataloaders
        if isinstance(loaders, Mapping):
            self.names = list(map(str, loaders))
        elif isinstance(loaders, Sequence):
            self.names = list(map(str, range(len(loaders)))) if len(loaders) > 1 else [""]
        about = {"weights": fingerprint(pl_module)}
        path = self.root / ABOUT
        if path.exists() and json.loads(path.read_text()) != about:
            raise ValueError(f"{self.root} holds embeddings of other weights: choose another folder, or delete it.")
        trainer.strategy.barrier()  # all have looked
        if trainer.is_global_zero:
            self.root.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(about))
        trainer.strategy.barrier()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Takes in a batch; writes a file when there is enough for one."""
        if not (isinstance(prediction, Tensor) and prediction.ndim == 2):
            raise ValueError(f"predict_step of {type(pl_module).__name__} must return embeddings (b, D).")
        if not batch_indices:
            raise ValueError("SavedEmbeddings needs a map-style data set, whose rows it saves as ids.")
        ids = torch.tensor(batch_indices)
        ids = self.left[dataloader_idx][ids] if dataloader_idx in self.left else ids
        part = {"embeddings": as_stored(prediction), "ids": ids}
        if isinstance(batch, Sequence) and len(batch) == 2 and isinstance(batch[1], Tensor):
            part["labels"] = batch[1].cpu()
        parts = self.pending.setdefault(dataloader_idx, [])
        parts.append(part)
        if sum(len(part["ids"]) for part in parts) >= self.shard_size:
            self.write(dataloader_idx, trainer.global_rank)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is left, and says where."""
        for dataloader_idx in list(self.pending):
            self.write(dataloader_idx, trainer.global_rank)
        if trainer.is_global_zero:
            say_where("Embeddings, ids and labels", self.root)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes what there is before the run ends."""
        for dataloader_idx in list(self.pending):
            self.write(dataloader_idx, trainer.global_rank)

    def write(self, dataloader_idx: int, rank: int) -> None:
        """Writes one file, which is there as a whole or not at all."""
        parts = self.pending.pop(dataloader_idx)
        arrays = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        folder = self.root / self.names[dataloader_idx]
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(path.stem.rsplit("-", 1)[1]) for path in folder.glob(f"shard-{rank:02}-*")]
        number = max(numbers, default=-1) + 1
        path = folder / f"shard-{rank:02}-{number:05}.{self.format}"
        unfinished = path.with_name(f"unfinished-{path.name}")
        if self.format == "npz":
            as_numpy: dict[str, Any] = {name: values.numpy() for name, values in arrays.items()}
            np.savez(unfinished, **as_numpy)
        else:
            save_file(arrays, unfinished)
        os.replace(unfinished, path)


def as_stored(embeddings: Tensor) -> Tensor:
    """Embeddings on the CPU, contiguous; bf16, which NumPy does not know, as fp32."""
    embeddings = embeddings.float() if embeddings.dtype == torch.bfloat16 else embeddings
    return embeddings.cpu().contiguous()


def fingerprint(module: LightningModule) -> str:
    """A hash of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
