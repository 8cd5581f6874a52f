"""Trains an embedder so that the whole batch's similarity matrix feeds the loss, whatever the batch's size."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from lightning_recall._lightning import (
    BatchSizeFinder,
    Callback,
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    callbacks_of,
    rank_zero_info,
)
from lightning_recall.gather import gather_rows
from lightning_recall.losses.base import declares
from lightning_recall.modules.monitors import check_monitors
from lightning_recall.optimization.manual_optimization import ManualOptimization
from lightning_recall.optimization.random_state import random_states, restore_random_state
from lightning_recall.optimization.resuming import check_mixup
from lightning_recall.recompute import chunked_forward, largest_chunk_size
from lightning_recall.recompute.pytrees import num_rows, tensors_of

Batch = Any
"""(inputs, labels (b,)), where inputs are a tensor (b, ...), or a dict, tuple or list of such; or a list of such pairs,
the chunks of a batch."""


class RetrievalModule(ManualOptimization):
    """Manual optimization with one exact step per large batch, as in the paper.

    A training step embeds the batch chunk by chunk, gathers the embeddings of all processes, computes the loss over all
    of them, and lets backward recompute the chunks: the memory of one chunk, the gradient of the whole batch. With
    several processes (DDP) each works out its share of the loss, if the loss declares `shares_queries` as the losses of
    this package do (`RetrievalLoss`), and the parameters' gradients are reduced once.

    A training batch is a list of chunks, as `RetrievalDataModule` makes it, or one pair (inputs, labels) of any loader.
    Validation and test only embed: `RetrievalEvaluation` scores.

    A training that is resumed from a checkpoint goes on as if never interrupted; in the middle of an epoch too, if its
    loader keeps its position, as `ChunkLoader` does: a plain DataLoader starts the epoch again.

    Args:
        embedder: inputs (b, ...) -> embeddings (b, D).
        loss: (embeddings (N, D), labels (N,)) -> scalar; its parameters, if any, are trained too. A loss that
            declares `shares_queries` gets the rows of this process, `accepts_virtual` the pairs that `mixup` draws.
        mixup: (embeddings, labels) -> more of both, such as `SimilarityMixup`; None: none.
        chunk_size: largest number of images in one pass of the embedder, per process; the activations of so many live
            at a time. "auto": the largest that fits the GPU, tried out at the first step; 128 on a CPU. BatchNorm in
            train mode normalises over a chunk.
        keep_chunks: how many chunks keep their activations and are not computed twice, from 1.
        test_time_augmentation: (embedder, images) -> embeddings, such as `MultiScale`; used in test and predict only.
            None: each image is embedded once, as it is.
        kwargs: for `ManualOptimization`: optimizer, lr_scheduler, gradient_clip_val, accumulate_grad_batches, ...

    Raises:
        ValueError: for a `chunk_size` or `keep_chunks` below 1; when training starts, for a strategy that shards the
            parameters, and for processes that all get the same batch.

    Logs `train/loss`, the same number on every process, and, every `log_every_n_steps`, the loss's `diagnostics` if it
    has any: `train/recall@1`, `train/active_positives`, ...
    """

    def __init__(
        self,
        embedder: nn.Module,
        loss: nn.Module,
        mixup: nn.Module | None = None,
        chunk_size: int | Literal["auto"] = 128,
        keep_chunks: int = 1,
        test_time_augmentation: nn.Module | None = None,
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
        self.resumed_states: list[dict[str, Any]] | None = None
        self.batch_checked = False

    @property
    def backbone(self) -> nn.Module:
        """The embedder's backbone, which Lightning's BackboneFinetuning asks for."""
        own = self._modules.get("backbone")  # of a subclass
        backbone: nn.Module = self.embedder.backbone if own is None else own  # type: ignore[assignment]  # as it should be
        return backbone

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Refuses BatchSizeFinder, too."""
        finders = [callback for callback in callbacks_of(self.trainer) if isinstance(callback, BatchSizeFinder)]
        if self.trainer.state.fn == "fit" and any(finder._batch_arg_name == "batch_size" for finder in finders):
            raise ValueError(
                "BatchSizeFinder would change the loss, which compares all images of a batch: choose batch_size for "
                'its quality. chunk_size alone sets the memory: chunk_size="auto" finds the largest that fits.'
            )
        return super().configure_callbacks()

    def forward(self, images: Any) -> Tensor:
        """Embeddings (b, D) of images (b, ...)."""
        embeddings: Tensor = self.embedder(images)
        return embeddings

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One large batch: its loss, its gradient, and an optimizer step where one is due.

        Returns:
            {"loss": the loss of the whole batch, without a graph}, the same number on every process.
        """
        inputs, own_labels = split_chunks(batch)
        self.check_batch(inputs, own_labels)
        chunk_size = self.fitting_chunk_size(inputs)
        own_embeddings = chunked_forward(self.embedder, inputs, chunk_size, self.keep_chunks, self.device)  # (b, D)
        loss, share = self.batch_loss(own_embeddings, own_labels)
        self.optimize(loss * share)
        whole = self.trainer.strategy.reduce(loss.detach() * share, reduce_op="mean")
        assert isinstance(whole, Tensor)
        self.log("train/loss", whole, prog_bar=True, batch_size=len(own_labels))
        if self.logs_this_batch():
            diagnostics = getattr(self.loss, "diagnostics", {})
            logged = {f"train/{name}": value * share for name, value in diagnostics.items()}
            self.log_dict(logged, sync_dist=True, batch_size=len(own_labels))
        return {"loss": whole}

    def batch_loss(self, own_embeddings: Tensor, own_labels: Tensor) -> tuple[Tensor, float]:
        """Loss over the embeddings of all processes, of which this one holds (b, D).

        Where processes share the work, it is the mean of this one's queries. Multiplied by the number that comes with
        it, its mean over the processes is the loss of the whole batch, in value and gradient.
        """
        exact = own_embeddings if own_embeddings.dtype == torch.float64 else own_embeddings.float()
        embeddings, labels = gather_rows(exact), gather_rows(own_labels)  # (N, D), (N,)
        options: dict[str, Any] = {}
        with torch.autocast(embeddings.device.type, enabled=False):  # similarities need fp32: ranks differ by 0.01
            if self.mixup is not None and hasattr(self.mixup, "draw") and declares(self.loss, "accepts_virtual"):
                options["pairs"] = self.mixup.draw(labels)  # type: ignore[operator]  # hasattr says that it can be called
            elif self.mixup is not None:
                embeddings, labels = self.mixup(embeddings, labels)
            share = 1.0
            if self.trainer.world_size > 1 and declares(self.loss, "shares_queries"):
                options["queries"], share = self.local_queries(labels, options.get("pairs"))
            loss: Tensor = self.loss(embeddings, labels, **options)
        return loss, share

    def local_queries(self, labels: Tensor, pairs: Any) -> tuple[Tensor | None, float]:
        """Rows that query on this process, and their share of all queries times the number of processes.

        None, and a share of 1, if there are fewer queries than processes, or if rows without a positive count, too:
        then each works out all of them.
        """
        searched = labels if pairs is None else torch.cat([labels, labels[pairs[0]]])
        _, inverse, counts = torch.unique(searched, return_inverse=True, return_counts=True)
        queries = (counts[inverse] > 1).nonzero().squeeze(1)  # those that have a positive
        if len(queries) < len(searched) and declares(self.loss, "counts_singletons"):
            return None, 1.0
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        own = queries[rank::world_size]
        return (own, world_size * len(own) / len(queries)) if len(queries) >= world_size else (None, 1.0)

    def logs_this_batch(self) -> bool:
        """Whether the loggers are written to after this batch: else logging would only take time."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by Lightning
        return bool(every) and (self.trainer.fit_loop.total_batch_idx + 1) % every == 0

    def fitting_chunk_size(self, inputs: list[Any]) -> int:
        """The chunk size; "auto" is tried out with the largest chunk, the same on all processes, and told."""
        if self.chunk_size == "auto":
            largest = max(inputs, key=num_rows)
            found = torch.tensor(largest_chunk_size(self.embedder, largest, self.device), device=self.device)
            if self.trainer.world_size > 1:
                distributed.all_reduce(found, distributed.ReduceOp.MIN)
            self.chunk_size = int(found)
            rank_zero_info(f"chunk_size: {self.chunk_size} images in one pass of the embedder.")
        return self.chunk_size

    def check_batch(self, inputs: list[Any], labels: Tensor) -> None:
        """Raises ValueError if, in the first batch of a training, all processes have got the same images."""
        if self.trainer.world_size == 1 or self.batch_checked:
            return
        self.batch_checked = True
        first = tensors_of(inputs[0])[0]
        own = torch.cat([part.flatten()[:10_000].double().to(self.device) for part in (first, labels)])
        sums = gather_rows(torch.stack([own.sum(), (own * torch.arange(len(own), device=own.device)).sum()])[None])
        if bool((sums == sums[0]).all()):
            raise ValueError(
                f"All {len(sums)} processes have got the same batch, so that each image would count {len(sums)} times: "
                "draw with ClassBalancedBatchSampler, or another sampler that gives each process its own part."
            )

    def validation_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """{"embeddings": (b, D)} of a batch (images, labels), for the callbacks."""
        return {"embeddings": self(batch[0])}

    def test_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As `validation_step`, by all `test_time_augmentation`."""
        return {"embeddings": self.predict_step(batch, batch_idx, dataloader_idx)}

    def predict_step(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Embeddings (b, D) of a batch (images, labels), by all `test_time_augmentation`."""
        embeddings: Tensor = (
            self(batch[0])
            if self.test_time_augmentation is None
            else self.test_time_augmentation(self.embedder, batch[0])
        )
        return embeddings

    def setup(self, stage: str) -> None:
        """Refuses strategies that cannot work."""
        super().setup(stage)
        self.resumed_states, self.batch_checked = None, False
        strategy = self.trainer.strategy
        if stage == "fit" and isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
            raise ValueError(
                f"{type(strategy).__name__} shards the parameters, which the recomputation would not find: use "
                'strategy="ddp"; a smaller chunk_size saves memory.'
            )
        static_graph = isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("static_graph", False)
        if stage == "fit" and static_graph and torch.__version__ < "2.8":
            raise ValueError(
                "static_graph gives wrong gradients before torch 2.8: leave it out, or take a newer torch."
            )

    def on_train_start(self) -> None:
        """Refuses monitors that nothing logs; goes on with the random numbers of a resumed training."""
        super().on_train_start()
        check_monitors(self.trainer, ["train/loss"], ["train/"] if hasattr(self.loss, "diagnostics") else [])
        if self.resumed_states is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            restore_random_state(self.resumed_states, rank, world_size, self.device)
            self.resumed_states = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the random numbers of every process."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["random_states"] = random_states(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the random numbers, if a training is resumed."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None:  # else of load_from_checkpoint
            check_mixup(checkpoint["state_dict"], self)
        self.resumed_states = checkpoint.get("random_states")


def split_chunks(batch: Batch) -> tuple[list[Any], Tensor]:
    """Inputs of a training batch as a list of chunks, and its labels (b,); a plain pair is one chunk.

    Raises:
        ValueError: if the batch is neither.
    """
    pair = isinstance(batch, Sequence) and len(batch) == 2 and isinstance(batch[1], Tensor)
    chunks = [batch] if pair else batch if isinstance(batch, Sequence) else [None]
    if not all(isinstance(chunk, Sequence) and len(chunk) == 2 and isinstance(chunk[1], Tensor) for chunk in chunks):
        raise ValueError(
            "A training batch must be a pair (inputs, labels), or a list of such chunks, "
            f"got a {type(batch).__name__}: override training_step, or have the loader give pairs."
        )
    inputs, labels = zip(*chunks, strict=True)
    return list(inputs), torch.cat(labels)
