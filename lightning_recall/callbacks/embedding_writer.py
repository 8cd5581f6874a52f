"""Keeps what `predict` computes, in files that an interrupted run goes on from."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from lightning_recall._lightning import Callback, LightningModule, Trainer, rank_zero_info
from lightning_recall.callbacks.dataloaders import named_loaders
from lightning_recall.callbacks.embedding_check import SavedRows, check_same, evenly_spaced, saved_ids, saved_rows
from lightning_recall.callbacks.embedding_files import load_embeddings, save_shard
from lightning_recall.callbacks.embedding_state import EmbeddingState, differences, load_state, save_state, state_of
from lightning_recall.callbacks.index_recorder import REMEDY, indices_of_batch, record_indices, stop_recording
from lightning_recall.callbacks.output import file_name, free_paths, keeps_files, output_path, print_path

__all__ = ["EmbeddingWriter", "load_embeddings"]


class EmbeddingWriter(Callback):
    """Writes what `predict` embeds to a folder: embeddings (n, D), ids (n,) and labels (n,), so many to a file.

    An id is a row of the data set. `load_embeddings(folder)` reads them all. With a folder of your own, a run that was
    interrupted continues where its last whole file ends, also with another number of processes. A folder of embeddings
    that were made in another state is refused: other weights, module, precision or test-time augmentation; another
    number of items; other paths (`paths`, `samples`, `imgs`), labels (`labels`, `targets`), tensors or arrays
    (`tensors`, `images`, `data`), rows of a `Subset` or parts of a `ConcatDataset`; other loading or folder of images.

    What this does not show is found by comparison: before new rows, up to 16 saved ones are embedded again, evenly
    spaced with the first and the last, and the run ends with an error, and saves nothing, if one differs from its saved
    embedding by more than rounding. They are among the predictions that `trainer.predict` returns. A change of other
    images only (the contents of a few files) is not found.

    Works with any module whose predict step returns embeddings (b, D), over batches (inputs, labels) or of inputs
    alone; several dataloaders have a folder each. Only dataloaders that the module or the data module makes are
    shortened to what is left. Those given to `trainer.predict` are embedded as a whole, all saved rows are compared,
    and each row is saved once.

    Args:
        folder: where to write, "~" is the home folder; None: `embeddings` in the run's folder, a new one for each
            `predict`.
        format: "npz" or "safetensors".
        shard_size: images in a file, per process; what an interruption may lose at most.

    Raises:
        ValueError: for another format or a `shard_size` below 1, when the folder holds embeddings of another state or a
            damaged file, or a row is embedded otherwise than it is saved, for predictions that are no embeddings, and
            where the rows of a batch are not known.
    """

    def __init__(
        self,
        folder: str | None = None,
        format: Literal["npz", "safetensors"] = "npz",  # noqa: A002  # what else to call it
        shard_size: int = 100_000,
    ) -> None:
        if format not in ("npz", "safetensors"):
            raise ValueError(f'format must be "npz" or "safetensors", got {format!r}.')
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}.")
        self.folder = folder
        self.format = format
        self.shard_size = shard_size
        self.root = Path()
        self.pending: dict[int, list[dict[str, Tensor]]] = {}  # of each dataloader, not yet written
        self.left: dict[int, Tensor] = {}  # rows (n,) of a shortened dataloader: those to compare, then those to save
        self.saved: dict[int, SavedRows] = {}  # of each dataloader, to compare
        self.compared: set[int] = set()  # dataloaders of which a saved row was compared
        self.folders: list[str] = [""]  # of each dataloader, within the root
        self.state: EmbeddingState | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has only what is not saved yet embedded."""
        if stage != "predict":
            return
        self.root = self.new_root(trainer) if self.folder is None else Path(self.folder).expanduser()
        self.pending, self.left, self.saved, self.compared = {}, {}, {}, set()
        self.folders, self.state = [""], None
        record_indices(trainer)
        source: Any = trainer.datamodule or pl_module  # type: ignore[attr-defined]  # Lightning sets it
        if self.holds_embeddings():
            source.predict_dataloader = partial(self.remaining, trainer, pl_module, source.predict_dataloader)

    def new_root(self, trainer: Trainer) -> Path:
        """A new folder within that of the run, the same on all processes."""
        if not keeps_files(trainer):
            return Path()
        (path,) = free_paths(output_path(trainer, "embeddings"))
        path = Path(trainer.strategy.broadcast(str(path)))
        path.mkdir(exist_ok=True)
        return path

    def holds_embeddings(self) -> bool:
        """Whether a folder of one's own has some; the one of a run is new."""
        patterns = ("shard-*", "*/shard-*")
        return self.folder is not None and any(path for pattern in patterns for path in self.root.glob(pattern))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has all embedded again the next time."""
        stop_recording(trainer)
        for source in (trainer.datamodule, pl_module):  # type: ignore[attr-defined]  # Lightning sets it
            hiding = vars(source).get("predict_dataloader") if source is not None else None
            if isinstance(hiding, partial) and hiding.func == self.remaining:
                del source.predict_dataloader

    def remaining(self, trainer: Trainer, pl_module: LightningModule, make: Any) -> Any:
        """The dataloaders without the rows that are saved in the same state."""
        loaders = make()
        self.take_state(trainer, pl_module, loaders)
        shortened = [self.shortened(number, part) for number, part in enumerate(named_loaders(loaders).values())]
        if isinstance(loaders, Mapping):
            return dict(zip(named_loaders(loaders), shortened, strict=True))
        return shortened if isinstance(loaders, list | tuple) else shortened[0]

    def take_state(self, trainer: Trainer, pl_module: LightningModule, loaders: Any) -> None:
        """Notes what is embedded; refuses a folder that holds something else.

        Raises:
            ValueError: in that case.
        """
        named = {str(name): loader for name, loader in named_loaders(loaders).items()}
        if not isinstance(loaders, Mapping) and len(named) == 1:
            named = dict(zip([""], named.values(), strict=True))
        self.folders = folder_names(list(named))
        self.state = state_of(trainer, pl_module, named)
        if not self.holds_embeddings():
            return
        was = load_state(self.root)
        reasons = ["it does not say of what weights and data"] if was is None else differences(was, self.state)
        if reasons:
            raise ValueError(
                f"{self.root} holds embeddings of another state: {'; '.join(reasons)}. "
                "Choose another folder, or delete this one."
            )

    def shortened(self, number: int, loader: Any) -> Any:
        """A dataloader of the rows that are not saved yet, after some that are."""
        folder = self.root / self.folders[number]
        saved = saved_ids(folder)
        if len(saved) == 0:
            return loader
        samplers = (SequentialSampler, RandomSampler)
        batch_size, sampler = getattr(loader, "batch_size", None), getattr(loader, "sampler", None)
        if batch_size is None or not isinstance(sampler, samplers) or len(sampler) != len(loader.dataset):
            raise ValueError(
                f"{folder} holds embeddings already, and predict goes on only with a DataLoader that has a batch_size "
                "and neither a sampler nor a batch_sampler of its own: choose another folder, or delete this one."
            )
        rows = torch.arange(len(loader.dataset))
        left = rows[~torch.isin(rows, saved)]
        self.saved[number] = saved_rows(folder, evenly_spaced(saved))
        self.left[number] = torch.cat([self.saved[number].ids, left])
        rank_zero_info(f"{folder} holds {len(rows) - len(left):,} embeddings, {len(left):,} are left.")
        kept = ("batch_size", "num_workers", "collate_fn", "pin_memory", "worker_init_fn", "multiprocessing_context")
        settings = {setting: getattr(loader, setting) for setting in kept}
        return DataLoader(Subset(loader.dataset, self.left[number].tolist()), **settings)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes of what the embeddings are."""
        if self.state is None:  # dataloaders that were given, or a new folder
            self.take_state(trainer, pl_module, trainer.predict_dataloaders)
            for number, name in enumerate(self.folders):
                ids = saved_ids(self.root / name)
                if len(ids):
                    self.saved[number] = saved_rows(self.root / name, ids)
        assert self.state is not None  # take_state sets it
        trainer.strategy.barrier()  # all have looked
        if trainer.is_global_zero and keeps_files(trainer):
            save_state(self.root, self.state)
        trainer.strategy.barrier()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes in a batch; writes a file when there is enough for one."""
        if not (isinstance(outputs, Tensor) and outputs.ndim == 2):
            raise ValueError(f"predict_step of {type(pl_module).__name__} must return embeddings (b, D).")
        loaders = list(named_loaders(trainer.predict_dataloaders).values())
        labels = batch[1] if isinstance(batch, Sequence) and len(batch) == 2 and isinstance(batch[1], Tensor) else None
        ids = indices_of_batch(loaders[dataloader_idx], batch_idx, len(outputs), labels)
        if ids is None:
            raise ValueError(f"EmbeddingWriter saves rows of the data set as ids: {REMEDY}.")
        ids = self.left[dataloader_idx][ids] if dataloader_idx in self.left else ids
        assert self.state is not None  # on_predict_start has set it
        part = {"embeddings": as_stored(outputs), "ids": ids}
        if labels is not None:
            part["labels"] = labels.cpu()
        self.take(trainer, dataloader_idx, part)

    def take(self, trainer: Trainer, dataloader_idx: int, part: dict[str, Tensor]) -> None:
        """Compares the rows of a batch that are saved; keeps the others, and writes a file if there is enough for one.

        Raises:
            ValueError: if a row is saved otherwise; then nothing more is written.
        """
        if dataloader_idx in self.saved:
            place = self.root / self.folders[dataloader_idx], str(trainer.precision)
            try:
                is_new = ~check_same(self.saved[dataloader_idx], part["ids"], part["embeddings"], *place)
            except ValueError:
                self.pending = {}
                raise
            self.compared |= set() if is_new.all() else {dataloader_idx}
            part = {name: values[is_new] for name, values in part.items()}
            if len(part["ids"]) == 0:
                return
        parts = self.pending.setdefault(dataloader_idx, [])
        parts.append(part)
        if (
            keeps_files(trainer)
            and self.is_trusted(dataloader_idx)
            and sum(len(part["ids"]) for part in parts) >= self.shard_size
        ):
            self.write(dataloader_idx, trainer.global_rank)

    def is_trusted(self, dataloader_idx: int) -> bool:
        """Whether rows may be written: none is before one was compared with those that the folder holds, if any."""
        return dataloader_idx not in self.saved or dataloader_idx in self.compared

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is left, and says where."""
        trainer.strategy.barrier()  # all have compared
        if keeps_files(trainer):
            self.on_exception(trainer, pl_module)
            if trainer.is_global_zero:
                print_path("Embeddings, ids and labels", self.root)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException | None = None
    ) -> None:
        """Writes what there is before the run ends."""
        for dataloader_idx in list(self.pending) if keeps_files(trainer) else []:
            if exception is None or self.is_trusted(dataloader_idx):
                self.write(dataloader_idx, trainer.global_rank)

    def write(self, dataloader_idx: int, rank: int) -> None:
        """Writes one file."""
        assert self.state is not None  # on_predict_start has set it
        parts = self.pending.pop(dataloader_idx)
        arrays = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        save_shard(self.root / self.folders[dataloader_idx], rank, self.format, arrays, self.state.digest)


def folder_names(names: list[str]) -> list[str]:
    """Names of folders for dataloaders: theirs, without what a path gives another meaning, and all different."""
    found: list[str] = []
    for name in names:
        folder = file_name(name).strip(".") or ("_" if name else "")
        while folder in found:
            folder += "_"
        found.append(folder)
    return found


def as_stored(embeddings: Tensor) -> Tensor:
    """Embeddings on the CPU, contiguous; bf16, which NumPy does not know, as fp32."""
    embeddings = embeddings.float() if embeddings.dtype == torch.bfloat16 else embeddings
    return embeddings.cpu().contiguous()
