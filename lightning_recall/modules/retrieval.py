"""LightningModule that computes the loss on the similarity matrix of a large batch."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, distributed, nn

from lightning_recall._lightning import (
    BatchSizeFinder,
    Callback,
    attached_trainer,
    batch_size_attribute,
    callbacks_of,
    rank_zero_info,
)
from lightning_recall.batch import Batch
from lightning_recall.gather import gather_rows
from lightning_recall.losses.base import has_flag
from lightning_recall.modules.checks import check_different_batches, check_mixup, check_strategy, checked_chunks
from lightning_recall.modules.training_summary import training_summary
from lightning_recall.optimization.distributed_random_states import get_random_states, set_random_states
from lightning_recall.optimization.manual_optimization import ManualOptimization
from lightning_recall.optimization.monitors import LoggedMetrics, check_monitors
from lightning_recall.optimization.parameter_groups import ParameterGroup, split_parameters
from lightning_recall.recompute import auto_chunk_size, chunked_forward
from lightning_recall.tensors import at_least_float32
from lightning_recall.virtual_pairs import VirtualPairs, append_virtual_labels


class RetrievalModule(ManualOptimization):
    """Manual optimization with one exact step per large batch, as in Patel et al., CVPR 2022 (arXiv 2108.11179).

    A training step embeds the batch chunk by chunk, gathers the embeddings of all processes, computes the loss over all
    of them, and recomputes the chunks during backward. This gives the full batch's gradient with the memory of one
    chunk. With several processes (DDP) each process computes the loss of its own queries if the loss sets
    `shares_queries`, as the losses of this package do (`RetrievalLoss`). Parameter gradients are reduced once.

    A training batch is a list of chunks, as `RetrievalDataModule` makes it, or one pair (inputs, labels) of any loader.
    Validation and test only embed: `RetrievalEvaluation` computes the scores.

    Resuming reproduces an uninterrupted run, also mid-epoch if the loader is stateful like `ChunkLoader`; a plain
    DataLoader restarts the epoch.

    Args:
        embedder: inputs (b, ...) -> embeddings (b, D). The package's data modules yield uint8 images, which
            `ImageEmbedder` normalises on the device; your own embedder must convert them (`images.float() / 255`).
        loss: (embeddings (N, D), labels (N,)) -> scalar; its parameters, if any, are trained too. With
            `shares_queries` the loss gets `queries`, the indices of this process's queries; with `accepts_virtual` it
            gets `pairs` from `mixup`.
        mixup: module that appends virtual embeddings and labels, such as `SimilarityMixup`; None: no mixup.
        chunk_size: maximum number of images per forward pass of the embedder, per process; limits activation memory to
            this many images. "auto": measured at the first step, see `auto_chunk_size`: the largest that fits in
            GPU memory; on a CPU the fastest up to 128. Checkpoints keep it, and a resumed training uses it.
            BatchNorm in train mode normalises over a chunk.
        keep_chunks: number of chunks whose activations are kept instead of recomputed; at least 1.
        test_time_augmentation: module for test-time augmentation, (embedder, images) -> embeddings, such as
            `MultiScale`; used in test and predict only. None: no augmentation.
        loss_lr: learning rate of the parameters of `loss`, such as proxies; None: the same as for the other parameters.
        kwargs: passed to `ManualOptimization`: optimizer, lr_scheduler, gradient_clip_val, accumulate_grad_batches, ...

    Raises:
        ValueError: for a `chunk_size` or `keep_chunks` below 1; when training starts, for a strategy that shards the
            parameters, and if all processes get the same batch.

    Logs `train/loss`, the same number on every process, and, every `log_every_n_steps`, the loss's `diagnostics` if it
    has any: `train/recall@1`, `train/active_positives`, ...
    """

    read_at_configuration: ClassVar[Sequence[str]] = (*ManualOptimization.read_at_configuration, "loss_lr")

    def __init__(
        self,
        embedder: nn.Module,
        loss: nn.Module,
        mixup: nn.Module | None = None,
        chunk_size: int | Literal["auto"] = 128,
        keep_chunks: int = 1,
        test_time_augmentation: nn.Module | None = None,
        loss_lr: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if chunk_size != "auto" and (type(chunk_size) is not int or chunk_size < 1):
            raise ValueError(f'chunk_size must be an integer from 1, or "auto", got {chunk_size!r}.')
        if keep_chunks < 1:
            raise ValueError(f"keep_chunks must be at least 1, got {keep_chunks}.")
        self.embedder = embedder
        self.loss = loss
        self.mixup = mixup
        self.chunk_size = chunk_size
        self.keep_chunks = keep_chunks
        self.test_time_augmentation = test_time_augmentation
        self.loss_lr = loss_lr
        self.resumed_states: list[dict[str, Any]] | None = None
        self.batch_checked = False

    @property
    def backbone(self) -> nn.Module:
        """The embedder's backbone, needed by Lightning's BackboneFinetuning; a subclass may have its own."""
        registered = self._modules.get("backbone")
        backbone: nn.Module = self.embedder.backbone if registered is None else registered  # type: ignore[assignment]  # nn.Module attributes are typed Tensor or Module
        return backbone

    def parameter_groups(self) -> list[ParameterGroup]:
        """The parameters of the loss have their own learning rate if `loss_lr` is given."""
        return split_parameters(self, [] if self.loss_lr is None else [(self.loss, {"lr": self.loss_lr})])

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Raises ValueError for BatchSizeFinder."""
        finders = [callback for callback in callbacks_of(self.trainer) if isinstance(callback, BatchSizeFinder)]
        if self.trainer.state.fn == "fit" and "batch_size" in map(batch_size_attribute, finders):
            raise ValueError(
                "BatchSizeFinder would change the loss, which compares all images of a batch: choose batch_size for "
                'retrieval quality, not for memory. chunk_size limits memory: chunk_size="auto" finds the largest that '
                "fits."
            )
        return super().configure_callbacks()

    def forward(self, images: Any) -> Tensor:
        """Embeddings (b, D) of images (b, ...)."""
        embeddings: Tensor = self.embedder(images)
        return embeddings

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Computes the loss of one large batch and its gradient, and steps the optimizer if a step is due.

        Returns:
            {"loss": the loss of the whole batch, without a graph}, the same number on every process.
        """
        inputs, local_labels = checked_chunks(batch)
        if self.trainer.world_size > 1 and not self.batch_checked:
            check_different_batches(inputs, local_labels, self.device)
        self.batch_checked = True
        chunk_size = self.resolve_chunk_size(inputs)
        local_embeddings = chunked_forward(self.embedder, inputs, chunk_size, self.keep_chunks, self.device)  # (b, D)
        loss, loss_scale = self.batch_loss(local_embeddings, local_labels)
        self.optimize(loss * loss_scale)
        global_loss = self.trainer.strategy.reduce(loss.detach() * loss_scale, reduce_op="mean")
        assert isinstance(global_loss, Tensor)
        self.log("train/loss", global_loss, prog_bar=True, batch_size=len(local_labels))
        if self.logs_this_batch():
            diagnostics = getattr(self.loss, "diagnostics", {})
            logged = {f"train/{name}": value * loss_scale for name, value in diagnostics.items()}
            self.log_dict(logged, sync_dist=True, batch_size=len(local_labels))
        return {"loss": global_loss}

    def batch_loss(self, local_embeddings: Tensor, local_labels: Tensor) -> tuple[Tensor, float]:
        """Loss over the gathered embeddings (N, D); this process computed local_embeddings (b, D).

        Returns (loss, loss_scale). If each process computes the loss of its own queries only, `loss` is the mean over
        these. The mean of loss * loss_scale over the processes is the global loss, in value and gradient.
        """
        embeddings = gather_rows(at_least_float32(local_embeddings))  # (N, D)
        labels = gather_rows(local_labels)  # (N,)
        options: dict[str, Any] = {}
        # compute similarities in fp32: close ranks differ by about 0.01 in similarity
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.mixup is not None and hasattr(self.mixup, "draw") and has_flag(self.loss, "accepts_virtual"):
                options["pairs"] = self.mixup.draw(labels)  # type: ignore[operator]  # checked by hasattr above
            elif self.mixup is not None:
                embeddings, labels = self.mixup(embeddings, labels)
            loss_scale = 1.0
            if self.trainer.world_size > 1 and has_flag(self.loss, "shares_queries"):
                options["queries"], loss_scale = self.local_queries(labels, options.get("pairs"))
            loss: Tensor = self.loss(embeddings, labels, **options)
        return loss, loss_scale

    def local_queries(self, labels: Tensor, pairs: VirtualPairs | None) -> tuple[Tensor | None, float]:
        """Indices of this process's queries, and the loss scale world_size * len(local) / len(all).

        Returns (None, 1.0) if there are fewer queries than processes, or if the loss counts images without a positive
        and there are some; every process then computes the loss of all queries.
        """
        all_labels = append_virtual_labels(labels, pairs)
        _, inverse, counts = torch.unique(all_labels, return_inverse=True, return_counts=True)
        queries = (counts[inverse] > 1).nonzero().squeeze(1)  # those with a positive
        if len(queries) < len(all_labels) and has_flag(self.loss, "counts_singletons"):
            return None, 1.0
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        local = queries[rank::world_size]
        return (local, world_size * len(local) / len(queries)) if len(queries) >= world_size else (None, 1.0)

    def logs_this_batch(self) -> bool:
        """Whether loggers write after this batch (every `log_every_n_steps`)."""
        interval = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by Lightning
        return bool(interval) and (self.trainer.fit_loop.total_batch_idx + 1) % interval == 0

    def resolve_chunk_size(self, inputs: list[Any]) -> int:
        """The chunk size; measures "auto", takes the minimum over processes, and logs it."""
        if self.chunk_size == "auto":
            size = auto_chunk_size(self.embedder, inputs, self.device, self.keep_chunks)
            found = torch.tensor(size, device=self.device)
            if self.trainer.world_size > 1:
                distributed.all_reduce(found, distributed.ReduceOp.MIN)
            self.chunk_size = int(found)
            rank_zero_info(f"chunk_size: {self.chunk_size} images in one pass of the embedder.")
        return self.chunk_size

    def training_summary(self, batch: Batch) -> dict[str, str]:
        """Rows for the table that `RunSummary` prints before training: embedder, loss, chunks and memory."""
        rows = training_summary(self, self.loss, self.chunk_size, batch)
        return {"embedder": type(self.embedder).__name__, **rows}

    def validation_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """{"embeddings": (b, D)} of a batch (images, labels), for the callbacks."""
        return {"embeddings": self(batch[0])}

    def test_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Same as `validation_step`, with test-time augmentation."""
        return {"embeddings": self.predict_step(batch, batch_idx, dataloader_idx)}

    def predict_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Embeddings (b, D) of a batch (images, labels), with test-time augmentation."""
        if self.test_time_augmentation is None:
            return self(batch[0])  # type: ignore[no-any-return]  # nn.Module calls are untyped
        embeddings: Tensor = self.test_time_augmentation(self.embedder, batch[0])
        return embeddings

    def setup(self, stage: str) -> None:
        """Checks the strategy."""
        super().setup(stage)
        self.resumed_states, self.batch_checked = None, False
        if stage == "fit":
            check_strategy(self.trainer.strategy)

    def on_train_start(self) -> None:
        """Checks monitors and restores the RNG state when resuming."""
        super().on_train_start()
        prefixes = ["train/"] if hasattr(self.loss, "diagnostics") else []
        check_monitors(
            self.trainer,
            LoggedMetrics(["train/loss"], prefixes, ["train/loss"], ["train/recall@"], "RetrievalEvaluation"),
        )
        if self.resumed_states is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            set_random_states(self.resumed_states, rank, world_size, self.device)
            self.resumed_states = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the RNG state of every process, and the chunk size."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["chunk_size"] = (self.chunk_size, self.device.type)
        checkpoint["random_states"] = get_random_states(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the RNG state when resuming, and a measured chunk size: another size changes the rounding."""
        super().on_load_checkpoint(checkpoint)
        if (trainer := attached_trainer(self)) is not None:
            check_mixup(checkpoint["state_dict"], self)
            chunk_size, device = checkpoint.get("chunk_size", ("auto", None))
            if self.chunk_size == "auto" and trainer.strategy.root_device.type == device:
                self.chunk_size = chunk_size
        self.resumed_states = checkpoint.get("random_states")
