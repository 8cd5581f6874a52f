"""Saves the embeddings that `predict` computes; an interrupted run can be resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lightning_recall._lightning import (
    Callback,
    LightningModule,
    Trainer,
    add_dataloader_hook,
    callbacks_of,
    rank_zero_info,
    remove_dataloader_hook,
)
from lightning_recall.batch import labels_of_pair
from lightning_recall.callbacks.dataloaders import loader_at, named_loaders
from lightning_recall.callbacks.embedding_check import ReferenceEmbeddings, load_reference, saved_indices
from lightning_recall.callbacks.embedding_folder import EmbeddingFolder, folder_names, to_storable
from lightning_recall.callbacks.embedding_state import EmbeddingState, differences, load_state, save_state, state_of
from lightning_recall.callbacks.index_checks import check_recorded
from lightning_recall.callbacks.index_recorder import (
    HINT,
    has_known_order,
    indices_of_batch,
    record_indices,
    stop_recording,
)
from lightning_recall.callbacks.item_names import write_items
from lightning_recall.callbacks.model_saving import save_model_beside
from lightning_recall.callbacks.output import end_progress_bar, output_path, print_path, unused_paths, writes_files
from lightning_recall.callbacks.remaining_batches import without_saved
from lightning_recall.embedding_sets.embedding_set import MODEL_FOLDER
from lightning_recall.embedding_sets.shards import load_embeddings

__all__ = ["EmbeddingWriter", "load_embeddings"]

REQUIRES_INDICES = "EmbeddingWriter needs the data set index of each item"


class EmbeddingWriter(Callback):
    """Writes the embeddings that `predict` computes to a folder: embeddings (n, D), ids (n,) and labels (n,).

    An id is an index of the data set; `items.csv` lists the path, label, class name and role of each id, those that the
    data set defines (`paths`, `class_names`, `is_query`, `is_gallery`, `groups`). `load_embeddings(folder)` reads the
    embeddings of all files. With `folder` set, an interrupted run continues after its last complete file, also with
    another number of processes. A folder whose embeddings come from a different model or data is rejected. These must
    be unchanged:

    - the weights, the module, the precision and the test-time augmentation;
    - the names of the dataloaders and their numbers of items;
    - the paths (`paths`, `samples`, `imgs`) and labels (`labels`, `targets`);
    - tensors and arrays (`tensors`, `images`, `data`);
    - the indices of a `Subset` and the parts of a `ConcatDataset`;
    - the transforms and the folder of the images.

    As a further check, each process first recomputes up to 16 evenly spaced saved embeddings, including the first and
    the last. If one differs from its saved embedding by more than the rounding tolerance, the run ends with an error
    and saves nothing. The recomputed embeddings are among the predictions that `trainer.predict` returns. If
    other image files have changed contents, this is not detected.

    The folder `model` beside the files holds the model, as `RetrievalModule.save_pretrained` saves it, so that more
    images can be embedded; modules without this method are not saved.

    Works with any module whose predict step returns embeddings (b, D), with batches (inputs, labels) or inputs only.
    Several dataloaders have one folder each. Saved items are removed from all dataloaders, whether they come from the
    module, the data module or `trainer.predict`. The saved items to recompute are kept and come first.

    Args:
        folder: output folder ("~" is expanded). None: a new folder `embeddings` (or `embeddings-1`, ...) in the run's
            folder for each `predict`.
        format: "npz" or "safetensors".
        shard_size: images in a file, per process; at most this many are lost on interruption.
        save_model: whether the model is saved too; takes as much space as its weights.

    Raises:
        ValueError: for an unknown format or a `shard_size` below 1; if the folder holds embeddings of a different model
            or data, or a damaged file; if an embedding differs from the saved one; for predictions that are not
            embeddings; if the indices of a batch are unknown; and if one of several EmbeddingWriters resumes: the
            others would miss the items that it has saved.
    """

    def __init__(
        self,
        folder: str | None = None,
        format: Literal["npz", "safetensors"] = "npz",  # noqa: A002  # shadows the builtin on purpose
        shard_size: int = 100_000,
        save_model: bool = True,
    ) -> None:
        if format not in ("npz", "safetensors"):
            raise ValueError(f'format must be "npz" or "safetensors", got {format!r}.')
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}.")
        self.folder = folder
        self.format = format
        self.shard_size = shard_size
        self.save_model = save_model
        self.root = Path()
        self.saved_state: EmbeddingState | None = None  # state of the embeddings in the folder
        self.state: EmbeddingState | None = None  # state of this run
        self.references: list[ReferenceEmbeddings | None] = []  # one for each dataloader of a resumed run
        self.folders: list[EmbeddingFolder] = []  # one for each dataloader

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Chooses the folder; if it holds embeddings, removes the saved items from the dataloaders."""
        if stage != "predict":
            return
        self.root = self.new_root(trainer) if self.folder is None else Path(self.folder).expanduser()
        self.state, self.saved_state, self.references, self.folders = None, None, [], []
        if self.holds_embeddings():
            if sum(isinstance(callback, EmbeddingWriter) for callback in callbacks_of(trainer)) > 1:
                raise ValueError(f"{self.root} holds embeddings: a Trainer can resume only one EmbeddingWriter.")
            self.saved_state = load_state(self.root)
            add_dataloader_hook(trainer, self.remove_saved)
        record_indices(trainer)

    def new_root(self, trainer: Trainer) -> Path:
        """Creates a new subfolder of the run's folder, the same on all processes."""
        if not writes_files(trainer):
            return Path()
        (path,) = unused_paths(output_path(trainer, "embeddings"))
        path = Path(trainer.strategy.broadcast(str(path)))
        path.mkdir(exist_ok=True)
        return path

    def holds_embeddings(self) -> bool:
        """Whether a folder given by the user holds embeddings; a run's own folder is always new."""
        patterns = ("shard-*", "*/shard-*")
        return self.folder is not None and any(path for pattern in patterns for path in self.root.glob(pattern))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Removes the hooks of the dataloaders."""
        remove_dataloader_hook(trainer, self.remove_saved)
        stop_recording(trainer)

    def remove_saved(self, trainer: Trainer, loader: Any) -> Any:
        """The next dataloader, without the items that are saved.

        Lightning prepares dataloaders one by one, in order. Names are taken from the saved state, because those of this
        run are not yet known; `record_state` checks them before the first batch.
        """
        names = folder_names(list(self.saved_state.data)) if self.saved_state is not None else []
        number = len(self.references)
        self.references.append(None)
        if number >= len(names) or not has_known_order(loader):
            return loader  # rejected in on_predict_start
        folder = self.root / names[number]
        saved = saved_indices(folder)
        if len(saved) == 0:
            return loader
        remainder = without_saved(loader, saved)
        self.references[number] = load_reference(folder, remainder.recheck_indices)
        where = " on this process" if trainer.world_size > 1 else ""
        rank_zero_info(
            f"{folder} holds {len(saved):,} embeddings, {remainder.num_left:,} remain to be computed{where}."
        )
        return remainder.loader

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks state and dataloaders, and saves the state to the folder."""
        names = self.record_state(trainer, pl_module)
        check_recorded(trainer.predict_dataloaders, REQUIRES_INDICES)
        references = self.references or [None] * len(names)
        self.folders = [
            EmbeddingFolder(self.root / name, self.format, reference)
            for name, reference in zip(folder_names(names), references, strict=True)
        ]
        assert self.state is not None  # record_state sets it
        trainer.strategy.barrier()  # all processes have checked the folder
        if trainer.is_global_zero and writes_files(trainer):
            if self.save_model:
                save_model_beside(self.root / MODEL_FOLDER, pl_module)
            save_state(self.root, self.state)
        trainer.strategy.barrier()

    def record_state(self, trainer: Trainer, pl_module: LightningModule) -> list[str]:
        """Records the state of model and data; returns the names of the dataloaders, "" for a single one.

        Raises:
            ValueError: if the folder holds embeddings of a different state.
        """
        loaders = trainer.predict_dataloaders
        named = {str(name): loader for name, loader in named_loaders(loaders).items()}
        if not isinstance(loaders, Mapping) and len(named) == 1:
            named = dict(zip([""], named.values(), strict=True))
        self.state = state_of(trainer, pl_module, named)
        if self.holds_embeddings():
            saved = self.saved_state
            if saved is None:
                raise ValueError(
                    f"{self.root} cannot be resumed, because the folder does not record which model and data produced "
                    "its embeddings. Choose another folder, or delete this one."
                )
            reasons = differences(saved, self.state)
            if reasons:
                raise ValueError(
                    f"{self.root} holds embeddings of a different model or data: {'; '.join(reasons)}. "
                    "Choose another folder, or delete this one."
                )
        return list(named)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects a batch; writes a file when `shard_size` is reached."""
        if not (isinstance(outputs, Tensor) and outputs.ndim == 2):
            raise ValueError(f"predict_step of {type(pl_module).__name__} must return embeddings (b, D).")
        labels = labels_of_pair(batch)
        ids = indices_of_batch(loader_at(trainer.predict_dataloaders, dataloader_idx), batch_idx, len(outputs), labels)
        if ids is None:
            raise ValueError(f"{REQUIRES_INDICES}, but the indices of batch {batch_idx} are unknown: {HINT}.")
        part = {"embeddings": to_storable(outputs), "ids": ids}
        if labels is not None:
            part["labels"] = labels.cpu()
        folder = self.folders[dataloader_idx]
        try:
            folder.add(part, str(trainer.precision))
        except ValueError:
            self.folders = []  # nothing more is written
            raise
        if folder.num_pending >= self.shard_size and folder.may_write:
            self.write(trainer, folder)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the remaining embeddings and prints the folder."""
        trainer.strategy.barrier()  # all processes have compared their saved embeddings
        for folder in self.folders:
            self.write(trainer, folder)
        if writes_files(trainer) and trainer.is_global_zero:
            end_progress_bar(trainer)
            loaders = named_loaders(trainer.predict_dataloaders).values()
            for folder, loader in zip(self.folders, loaders, strict=True):
                write_items(getattr(loader, "dataset", None), folder.path / "items.csv")
            print_path("Embeddings, ids and labels", self.root)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes pending embeddings when the run is interrupted."""
        for folder in self.folders:
            if folder.may_write:
                self.write(trainer, folder)

    def write(self, trainer: Trainer, folder: EmbeddingFolder) -> None:
        """Writes the pending embeddings of one dataloader."""
        if writes_files(trainer):
            assert self.state is not None  # on_predict_start has set it
            folder.write(trainer.global_rank, self.state.digest)
