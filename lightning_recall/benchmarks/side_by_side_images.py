"""Image rows of the side-by-side benchmark: this library, pytorch-metric-learning and the published code."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lightning_recall._lightning import LightningModule, Trainer
from lightning_recall.benchmarks.published import published_criterion, published_epoch, published_loss
from lightning_recall.benchmarks.side_by_side_task import Batches, OptimizerFactory, Row
from lightning_recall.data.augment import random_affine
from lightning_recall.datamodules import GlyphsDataModule
from lightning_recall.losses import RecallAtKLoss
from lightning_recall.metrics import RetrievalScores
from lightning_recall.models import ImageEmbedder, SmallConvNet
from lightning_recall.modules import RetrievalModule

DIM = 128
SAMPLES_PER_CLASS = 4
PML_LOSSES = ("MultiSimilarityLoss", "SmoothAPLoss")

Batch = tuple[Tensor, Tensor]
"""images (B, C, H, W) uint8 and labels (B,), with the images of a class in consecutive order"""


@dataclass(frozen=True)
class ImageTask:
    """Glyphs of 32 x 32 pixels, a small network without BatchNorm, and losses of all images of a batch.

    Args:
        batch_size: images in a batch, 4 per class.
        chunk_size: images in one pass of the network.
        backbone: a timm model with random weights and frozen BatchNorm statistics; None: `SmallConvNet`.
        published: folder of a clone of github.com/yash0307/RecallatK_surrogate, or None.
        root: folder of the cached glyphs; None: that of `GlyphsDataModule`.
    """

    batch_size: int = 256
    chunk_size: int = 64
    backbone: str | None = None
    published: str | None = None
    root: str | None = None
    items: str = "images"

    def absent(self) -> dict[str, str]:
        """Rows that are left out, and what they need."""
        hints = {}
        if find_spec("pytorch_metric_learning") is None:
            hints["pytorch-metric-learning"] = "pip install pytorch-metric-learning"
        if self.published is None:
            hints["published code"] = "git clone https://github.com/yash0307/RecallatK_surrogate, then --published DIR"
        return hints

    def rows(self) -> list[Row]:
        """This library first; the plain LightningModules embed the whole batch at once."""
        losses: dict[str, Callable[[], nn.Module]] = {"RecallAtKLoss": RecallAtKLoss}
        if find_spec("pytorch_metric_learning") is not None:
            losses |= {f"{name} (PML)": partial(pml_loss, name) for name in PML_LOSSES}
        rows = []
        for step, (chunk_size, keep_chunks) in {
            "chunks": (self.chunk_size, 1),
            "chunks, all kept": (self.chunk_size, self.batch_size),
            "whole batch": (self.batch_size, 1),
        }.items():
            train = partial(train_retrieval_module, RecallAtKLoss, chunk_size, keep_chunks)
            batch_loss = partial(loss_of_images, RecallAtKLoss)
            rows.append(Row(f"RetrievalModule, {step}", "RecallAtKLoss", train, batch_loss, step != "whole batch"))
        for name, build in losses.items():
            ours, plain = partial(train_retrieval_module, build, self.batch_size, 1), partial(train_plain_module, build)
            batch_loss = partial(loss_of_images, build)
            if build is not RecallAtKLoss:  # measured above
                rows.append(Row("RetrievalModule, whole batch", name, ours, batch_loss, in_chunks=False))
            rows.append(Row("plain LightningModule, whole batch", name, plain, batch_loss, in_chunks=False))
        if self.published is not None:
            rows.append(self.published_row(self.published))
        return rows

    def published_row(self, folder: str) -> Row:
        """The published code's loss and step; the code does not run on several processes."""
        sizes = self.batch_size, self.batch_size // SAMPLES_PER_CLASS, DIM
        criterion = partial(published_criterion, folder, *sizes)
        train = partial(published_epoch, folder, criterion, self.chunk_size, DIM)
        batch_loss = partial(loss_of_images, partial(published_loss, folder, *sizes))
        return Row("published step, chunks", "RecallatK (published)", train, batch_loss, distributed=False)

    def build(self, dropout: float = 0.0) -> nn.Module:
        """Dropout, if any, comes after the last convolution of `SmallConvNet`, or is the timm model's own."""
        torch.manual_seed(0)
        if self.backbone is not None:
            kwargs = {"drop_rate": dropout, "drop_path_rate": dropout} if dropout else {}
            return ImageEmbedder(self.backbone, DIM, False, freeze_batch_norm=True, backbone_kwargs=kwargs).train()
        network = SmallConvNet()
        network.layers.append(nn.Dropout(dropout))
        return ImageEmbedder(network, DIM).train()

    def batches(self, count: int) -> list[Batch]:
        """Augmented class-balanced batches; images of a class are consecutive, as the published code expects."""
        data = glyphs(self.root, self.batch_size, self.chunk_size)
        torch.manual_seed(0)
        found: list[Batch] = []
        while len(found) < count:
            for chunks in data.train_dataloader():
                images, labels = (torch.cat(parts) for parts in zip(*chunks, strict=True))
                order = labels.argsort(stable=True)
                found.append((random_affine(images[order]), labels[order]))
                if len(found) == count:
                    break
        return found

    def local_batch(self, batch: Batch, rank: int, processes: int) -> Batch:
        """Consecutive images."""
        images, labels = batch
        return images.chunk(processes)[rank], labels.chunk(processes)[rank]

    def in_chunks(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Chunks of `chunk_size` images."""
        return lambda images: torch.cat([model(chunk) for chunk in torch.split(images, self.chunk_size)])

    def score(self, model: nn.Module) -> float:
        """Recall@1 of the test characters."""
        scores = RetrievalScores(["recall"], [1])
        with torch.no_grad():
            for images, labels in glyphs(self.root, self.batch_size, self.chunk_size).test_dataloader():
                scores.update(model(images), labels)
        recalls: dict[str, Tensor] = dict(scores.compute())
        return float(recalls["recall@1"])


@cache
def glyphs(root: str | None, batch_size: int, chunk_size: int) -> GlyphsDataModule:
    """The data module, without validation classes."""
    sizes: dict[str, Any] = {"batch_size": batch_size, "samples_per_class": SAMPLES_PER_CLASS, "chunk_size": chunk_size}
    data = GlyphsDataModule(root, val_classes=0, **sizes)
    data.prepare_data()
    data.setup("fit")
    return data


def pml_loss(name: str) -> nn.Module:
    """A loss of pytorch-metric-learning with its default arguments."""
    import pytorch_metric_learning.losses as pml_losses

    loss: nn.Module = getattr(pml_losses, name)()
    return loss


def loss_of_images(build: Callable[[], Callable[..., Tensor]], embed: Callable[[Tensor], Tensor], batch: Batch) -> Any:
    """The loss of a batch in one graph."""
    images, labels = batch
    return build()(embed(images), labels)


def fit(module: LightningModule, batches: Batches) -> None:
    """Trains with a Trainer, on all processes if there are several."""
    several = distributed.is_initialized()
    trainer = Trainer(
        accelerator="cpu",
        devices=distributed.get_world_size() if several else 1,
        strategy="ddp" if several else "auto",
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches)


def train_retrieval_module(
    loss: Callable[[], nn.Module],
    chunk_size: int,
    keep_chunks: int,
    model: nn.Module,
    batches: Batches,
    optimizer: OptimizerFactory,
) -> None:
    """Trains with this library."""
    fit(RetrievalModule(model, loss(), None, chunk_size, keep_chunks, optimizer=optimizer), batches)


def train_plain_module(
    loss: Callable[[], nn.Module], model: nn.Module, batches: Batches, optimizer: OptimizerFactory
) -> None:
    """Trains with automatic optimization and the whole batch in one graph."""
    fit(PlainModule(model, loss(), optimizer), batches)


class PlainModule(LightningModule):
    """The LightningModule that users of pytorch-metric-learning write.

    On several processes it wraps PML's losses in PML's `DistributedLossWrapper`, which gathers the embeddings. Other
    losses see the images of their process only.

    Args:
        model: the embedder.
        loss: (embeddings, labels) -> scalar.
        optimizer: builds the optimizer.
    """

    def __init__(self, model: nn.Module, loss: nn.Module, optimizer: OptimizerFactory) -> None:
        super().__init__()
        self.model, self.optimizer = model, optimizer
        self.loss = loss
        if distributed.is_initialized() and type(loss).__module__.startswith("pytorch_metric_learning"):
            from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

            self.loss = DistributedLossWrapper(loss)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the batch."""
        images, labels = batch
        loss: Tensor = self.loss(self.model(images), labels)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of all parameters."""
        return self.optimizer(self.parameters())
