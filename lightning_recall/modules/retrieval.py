"""LightningModule that computes the loss on the similarity matrix of a large batch."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, distributed, nn

from lightning_recall._lightning import Callback, attached_trainer, rank_zero_info
from lightning_recall.batch import Batch
from lightning_recall.constructor_arguments import record_arguments
from lightning_recall.gather import gather_rows
from lightning_recall.losses.base import has_flag
from lightning_recall.modules.checks import (
    check_batch_size_finder,
    check_different_batches,
    check_mixup,
    check_strategy,
    checked_chunks,
)
from lightning_recall.modules.fine_tuning import retrieval_groups
from lightning_recall.modules.frozen_backbone import ALL_CHUNKS, FrozenBackbone, find_backbone
from lightning_recall.modules.local_queries import local_queries
from lightning_recall.modules.shared_module import SharedModule
from lightning_recall.modules.threshold import ModuleWithThreshold
from lightning_recall.modules.training_summary import training_summary
from lightning_recall.optimization import weight_averaging
from lightning_recall.optimization.distributed_random_states import get_random_states, set_random_states
from lightning_recall.optimization.fine_tuning_groups import check_layer_decay
from lightning_recall.optimization.manual_optimization import ManualOptimization
from lightning_recall.optimization.monitors import LoggedMetrics, check_monitors
from lightning_recall.optimization.parameter_groups import ParameterGroup
from lightning_recall.recompute import auto_chunk_size, chunked_forward
from lightning_recall.tensors import at_least_float32


@record_arguments
class RetrievalModule(ModuleWithThreshold, SharedModule, ManualOptimization):
    """Manual optimization with one exact step per large batch, as in Patel et al., CVPR 2022 (arXiv 2108.11179).

    A training step embeds the batch chunk by chunk, gathers the embeddings of all processes, computes the loss over all
    of them, and recomputes the chunks during backward. This gives the full batch's gradient with the memory of one
    chunk. With several processes (DDP) each process computes the loss of its own queries if the loss sets
    `shares_queries`, as the losses of this package do (`RetrievalLoss`). Parameter gradients are reduced once.

    A training batch is a list of chunks, as `RetrievalDataModule` makes it, or one pair (inputs, labels) of any loader.
    Validation and test only embed: `RetrievalEvaluation` computes the scores.

    Resuming reproduces an uninterrupted run, also mid-epoch if the loader is stateful like `ChunkLoader`; a plain
    DataLoader restarts the epoch.

    Checkpoints hold the settings that turn an image file into an input in evaluation: `preprocess(image)` applies them.

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
        head_lr: learning rate of the embedder outside its backbone, such as the projection; None: the optimizer's.
        layer_decay: each layer of the backbone has the learning rate of the layer above it, times this factor; above 0
            and at most 1, which gives all layers the same rate. Below 1 needs a timm model.
        unfreeze_epoch: first epoch, counted from 0, in which the backbone is trained. Before it, the backbone is frozen
            and in evaluation mode, and a step costs only its forward pass. None: it stays frozen.
        kwargs: passed to `ManualOptimization`: optimizer, lr_scheduler, gradient_clip_val, accumulate_grad_batches, ...

    Raises:
        ValueError: for a `chunk_size` or `keep_chunks` below 1, or an invalid `layer_decay` or `unfreeze_epoch`; when
            training starts, for a strategy that shards the parameters, for an `unfreeze_epoch` beyond the training, and
            if all processes get the same batch.

    Parameters with at most one dimension (norms, biases, GeM's exponent, temperatures) and those that a timm backbone's
    `no_weight_decay()` names have no weight decay, if the backbone is a timm model or `head_lr` or `layer_decay` is
    set; a training resumed from a checkpoint of an earlier release keeps its weight decay on all.

    Logs `train/loss`, the same number on every process, and, every `log_every_n_steps`, the loss's `diagnostics` if it
    has any: `train/recall@1`, `train/active_positives`, ...
    """

    read_at_configuration: ClassVar[Sequence[str]] = (
        *ManualOptimization.read_at_configuration,
        *("loss_lr", "head_lr", "layer_decay"),
    )

    def __init__(
        self,
        embedder: nn.Module,
        loss: nn.Module,
        mixup: nn.Module | None = None,
        chunk_size: int | Literal["auto"] = 128,
        keep_chunks: int = 1,
        test_time_augmentation: nn.Module | None = None,
        loss_lr: float | None = None,
        head_lr: float | None = None,
        layer_decay: float = 1.0,
        unfreeze_epoch: int | None = 0,
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
        self.loss_lr, self.head_lr, self.layer_decay = loss_lr, head_lr, layer_decay
        check_layer_decay(layer_decay)
        self.frozen_backbone = FrozenBackbone(unfreeze_epoch)
        self.resumes_without_groups = False  # the checkpoint is of a release without groups for fine-tuning
        self.resumed_states: list[dict[str, Any]] | None = None
        self.batch_checked = False

    @property
    def backbone(self) -> nn.Module:
        """The embedder's backbone, needed by Lightning's BackboneFinetuning; a subclass may have its own.

        An embedder that wraps another as `embedder` has the backbone of the other.
        """
        backbone = self._modules.get("backbone") or find_backbone(self.embedder)
        if backbone is None:
            raise AttributeError(f"{type(self.embedder).__name__} has no attribute `backbone`.")
        return backbone

    @property
    def unfreeze_epoch(self) -> int | None:
        """First epoch, counted from 0, in which the backbone is trained; None: it stays frozen."""
        return self.frozen_backbone.unfreeze_epoch

    @property
    def image_size(self) -> int | None:
        """Height and width in pixels that the backbone expects; None if the embedder does not know it."""
        size: int | None = getattr(self.embedder, "image_size", None)
        return size

    def features(self, images: Any) -> Tensor:
        """The embedder's `features`: pooled features (b, num_features) of its backbone, not normalised."""
        features: Tensor = self.embedder.features(images)  # type: ignore[operator]  # nn.Module attributes are typed Tensor or Module
        return features

    def parameter_groups(self) -> list[ParameterGroup]:
        """The parameters of the backbone, of the rest of the embedder and of the loss; see `head_lr`, `layer_decay`."""
        return retrieval_groups(self, self.resumes_without_groups)

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Raises ValueError for BatchSizeFinder; puts WeightAveraging first."""
        check_batch_size_finder(self.trainer)
        weight_averaging.put_weight_averaging_first(self.trainer)
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
        is_frozen = self.frozen_backbone.update(self)
        self.has_frozen_parameters = is_frozen and self.unfreeze_epoch is not None  # None: frozen before DDP is set up
        keep_chunks = ALL_CHUNKS if is_frozen else self.keep_chunks
        local_embeddings = chunked_forward(self.embedder, inputs, chunk_size, keep_chunks, self.device)  # (b, D)
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
                options["queries"], loss_scale = local_queries(self, self.loss, labels, options.get("pairs"))
            loss: Tensor = self.loss(embeddings, labels, **options)
        return loss, loss_scale

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
        self.resumes_without_groups = False
        if stage == "fit":
            check_strategy(self.trainer.strategy)
            self.frozen_backbone.setup(self)

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

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Gives averaged weights, if there are any, the current buffers of the loss and of mixup."""
        weight_averaging.copy_current_state(self.trainer, self)

    def on_train_epoch_end(self) -> None:
        """Same as `on_train_batch_end`, and steps ReduceLROnPlateau."""
        super().on_train_epoch_end()
        weight_averaging.copy_current_state(self.trainer, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the RNG state of every process, and the chunk size."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["chunk_size"] = (self.chunk_size, self.device.type)
        checkpoint["random_states"] = get_random_states(self.device)
        checkpoint["has_parameter_groups"] = not self.resumes_without_groups
        weight_averaging.save_averaged_weights(checkpoint, self.trainer, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the RNG state when resuming, and a measured chunk size: another size changes the rounding."""
        super().on_load_checkpoint(checkpoint)
        if (trainer := attached_trainer(self)) is not None:
            check_mixup(checkpoint["state_dict"], self)
            weight_averaging.check_weight_averaging(checkpoint, self.trainer)
            self.resumes_without_groups = not checkpoint.get("has_parameter_groups", False)
            chunk_size, device = checkpoint.get("chunk_size", ("auto", None))
            if self.chunk_size == "auto" and trainer.strategy.root_device.type == device:
                self.chunk_size = chunk_size
        self.resumed_states = checkpoint.get("random_states")
