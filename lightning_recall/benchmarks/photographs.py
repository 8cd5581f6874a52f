"""Fine-tunes a pretrained network on a folder of photographs with every loss, at an equal number of images.

The folder holds one folder for each class. The first half of the classes, in alphabetical order, is for training, the
second half for the test. With --choose, every third training class is used for validation instead, the test classes are
not read, and every rate of --rates is tried. Results are appended to photographs.csv after each run; a run that is
already in the file is not repeated, so an interrupted benchmark can be continued.
"""

import argparse
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torchvision.transforms import v2

from lightning_recall import losses
from lightning_recall._lightning import PACKAGE, EMAWeightAveraging, seed_everything
from lightning_recall.batch import IGNORED_LABEL
from lightning_recall.benchmarks.losses import pml_loss, quiet_trainer
from lightning_recall.benchmarks.measure import machine
from lightning_recall.benchmarks.result_rows import (
    PRETRAINED,
    append_row,
    draw_summary,
    pending,
    read_rows,
    rows_of,
    summary,
    summary_table,
)
from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.data.folders import list_images
from lightning_recall.datamodules import RetrievalDataModule
from lightning_recall.datamodules.splits import image_files
from lightning_recall.memory_allocation import keep_freed_memory
from lightning_recall.metrics import RetrievalScores
from lightning_recall.mixup import SimilarityMixup
from lightning_recall.models import ImageEmbedder
from lightning_recall.modules import RetrievalModule
from lightning_recall.optimization import WarmupCosineLR
from lightning_recall.samplers import ClassBalancedBatchSampler

BATCH = 96  # images that the loss compares, unless given
CHUNK = 64  # images per pass of the network
SCORES = {"recall@1": "R@1", "map@r": "map@r"}  # name -> heading


class Method(NamedTuple):
    """What is trained, and how.

    loss: builds the loss from the number of classes and the embedding dimension.
    rate: learning rate of the backbone; None: no training.
    mixup: builds the mixup, or None.
    average: decay of the exponential moving average of the weights; 0: no average.
    samples_per_class: images of each class in a batch.
    """

    loss: Callable[[int, int], nn.Module]
    rate: float | None
    mixup: Callable[[], nn.Module] | None = None
    average: float = 0.0
    samples_per_class: int = 4


def without_classes(loss: Callable[[], nn.Module]) -> Callable[[int, int], nn.Module]:
    """Builds a loss that does not depend on the number of classes or the embedding dimension."""
    return lambda *_: loss()


def with_softmax(classes: int, dim: int) -> nn.Module:
    """0.9 RecallAtK + 0.1 normalized softmax."""
    return losses.MultipleLosses([losses.RecallAtKLoss(), losses.NormalizedSoftmaxLoss(classes, dim)], [0.9, 0.1])


METHODS = {
    PRETRAINED: Method(without_classes(losses.RecallAtKLoss), None),
    "recipe": Method(without_classes(losses.RecallAtKLoss), 1e-4, average=0.97),
    "recipe, softmax": Method(with_softmax, 1e-4, average=0.97),
    "RecallAtK": Method(without_classes(losses.RecallAtKLoss), 1e-4),
    "RecallAtK, SiMix": Method(without_classes(losses.RecallAtKLoss), 1e-4, SimilarityMixup),
    "SupRecallAtK": Method(without_classes(losses.SupRecallAtKLoss), 1e-4),
    "SmoothAP": Method(without_classes(losses.SmoothAPLoss), 1e-4),
    "contrastive": Method(without_classes(losses.ContrastiveLoss), 1e-4),
    "MultiSimilarity (PML)": Method(without_classes(partial(pml_loss("MultiSimilarityLoss"), 0)), 1e-4),
    "SupCon (PML)": Method(without_classes(partial(pml_loss("SupConLoss"), 0)), 1e-4),
    "ProxyAnchor": Method(losses.ProxyAnchorLoss, 1e-4),
    "normalized softmax": Method(losses.NormalizedSoftmaxLoss, 1e-4),
    "normalized softmax, averaged": Method(losses.NormalizedSoftmaxLoss, 1e-4, average=0.97),
}


class Photographs(RetrievalDataModule):
    """Photographs in one folder for each class: the first half of the classes trains, the second half tests.

    Args:
        root: the folder.
        transforms: image loading and transforms.
        choose: whether every third training class is for validation and the test classes are not read.
        kwargs: passed to `RetrievalDataModule`.
    """

    def __init__(self, root: str, transforms: ImageTransforms, choose: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs, val_classes=0)
        self.root = Path(root)
        self.transforms = transforms
        self.choose = choose

    def read(self) -> dict[str, ImageFiles]:
        """Splits the classes by their position in alphabetical order."""
        paths, names = list_images(self.root, self.root, [])
        data = image_files(self.root, paths, names, self.transforms)
        trains = data.labels < len(set(names)) // 2
        if not self.choose:
            return {"train": data.select(trains), "test": data.select(~trains)}
        validates = trains & (data.labels % 3 == 0)
        return {"train": data.select(trains & ~validates), "test": data.select(validates)}


class Setting(NamedTuple):
    """What the scores of a run depend on; a run with the same setting is not repeated.

    split is "validation" with `choose`, otherwise "test"; sizes are in pixels.
    """

    method: str
    rate: float
    batch: int
    seed: int
    images: int
    size: int
    test_size: int
    min_scale: float
    split: str
    photos: str
    backbone: str
    weights: str


def build(method: Method, weights: str, backbone: str, classes: int, rate: float) -> RetrievalModule:
    """A module whose embeddings are the pooled features of the pretrained backbone, without a new layer."""
    embedder = ImageEmbedder(backbone, embedding_dim=None, pretrained=weights)
    return RetrievalModule(
        embedder,
        method.loss(classes, embedder.num_features),
        None if method.mixup is None else method.mixup(),
        chunk_size=CHUNK,
        optimizer=partial(torch.optim.AdamW, lr=rate, weight_decay=0.01),
        loss_lr=100 * rate,
        lr_scheduler=WarmupCosineLR,
        lr_interval="step",
    )


@torch.no_grad()
def score(module: RetrievalModule, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Recall@1 and mAP@R of the images of some batches, without unreadable ones."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scores = RetrievalScores(("recall", "map@r"), (1,), ignore_index=IGNORED_LABEL).to(device)
    module.to(device).eval()
    for images, labels in batches:
        scores.update(module(images.to(device)), labels.to(device))
    return dict(scores.compute())


def run(setting: Setting, workers: int) -> dict[str, Any]:
    """Trains one method and scores it on the classes of its split."""
    method = METHODS[setting.method]
    seed_everything(setting.seed, verbose=False)
    resize = v2.Resize((setting.test_size, setting.test_size), antialias=True)  # the whole photograph
    transforms = ImageTransforms(size=setting.size, min_scale=setting.min_scale, eval_transform=resize)
    data = Photographs(
        setting.photos,
        transforms,
        setting.split == "validation",
        batch_size=setting.batch,
        samples_per_class=method.samples_per_class,
        seed=setting.seed,
        num_workers=workers,
        sampler=partial(ClassBalancedBatchSampler, few_classes="repeat", small_classes="repeat"),
    )
    data.setup("fit")
    assert data.train_data is not None  # Photographs always reads training data
    names, data.train_data.labels = np.unique(data.train_data.labels, return_inverse=True)  # 0..C-1, for proxies
    module = build(method, setting.weights, setting.backbone, len(names), setting.rate)
    start = time.perf_counter()
    steps = max(setting.images // setting.batch, 1)
    if method.rate is not None:
        callbacks = [EMAWeightAveraging(decay=method.average)] if method.average else []
        quiet_trainer(max_epochs=-1, max_steps=steps, limit_val_batches=0, callbacks=callbacks).fit(
            module, datamodule=data
        )
    seconds = time.perf_counter() - start
    scores = score(module, data.test_dataloader())
    row = {**setting._asdict(), "steps": steps, **{name: round(100 * float(scores[name]), 2) for name in SCORES}}
    return {**row, "seconds": round(seconds, 1)}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser("lightning_recall.benchmarks.photographs", description=__doc__)
    add, names = made.add_argument, list(METHODS)
    add("--photos", required=True, metavar="DIR", help="a folder with one folder of photographs for each class")
    add("--weights", required=True, metavar="FILE", help="pretrained weights of the backbone")
    add("--backbone", default="tf_efficientnet_lite0", metavar="NAME", help="a timm model")
    add("--methods", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}")
    add("--images", type=int, default=4_800, help="number of training images per run")
    add("--batch-sizes", type=int, nargs="+", default=[BATCH], help="images that the loss compares")
    add("--rates", type=float, nargs="+", help="learning rates; default: the one chosen for each method")
    add("--rate-exponent", type=float, default=0.0, help="multiplies rates by (batch size / 96) to this power")
    add("--seeds", type=int, default=3, help="training runs of each method")
    add("--size", type=int, default=96, help="training images, pixels")
    add("--test-size", type=int, default=112, help="test images, pixels")
    add("--min-scale", type=float, default=0.3, help="smallest fraction of a photograph that a training crop shows")
    add("--workers", type=int, default=0, help="loader processes")
    add("--choose", action="store_true", help="score on a third of the training classes instead of the test classes")
    add("--output", default="photographs", metavar="DIR", help="folder for photographs.csv and photographs.png")
    return made


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """The runs that the options ask for; the pretrained features have no rate, and one batch size and seed."""
    photos, weights = (str(Path(path).resolve()) for path in (options.photos, options.weights))
    sizes = (options.images, options.size, options.test_size, options.min_scale)
    rest = (*sizes, "validation" if options.choose else "test", photos, options.backbone, weights)
    found = []
    for name, batch, seed in product(options.methods, options.batch_sizes, range(options.seeds)):
        chosen = METHODS[name].rate
        rates = [] if chosen is None else options.rates or [chosen]
        scale = (batch / BATCH) ** options.rate_exponent
        found += [Setting(name, float(f"{rate * scale:.2g}"), batch, seed, *rest) for rate in rates]
    if PRETRAINED in options.methods:
        found.insert(0, Setting(PRETRAINED, 0.0, options.batch_sizes[0], 0, *rest))
    return found


def main(args: list[str] | None = None) -> None:
    """Runs what is not in the CSV file yet, prints a table and draws a plot."""
    options = parser().parse_args(args)
    console, folder = Console(), Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "photographs.csv"
    settings = settings_of(options)
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)  # the devices of each Trainer
    console.print(machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    for setting in track(pending(settings, read_rows(path)), "runs", console=console):
        append_row(path, run(setting, options.workers))
    rows = rows_of(settings, read_rows(path))
    split = "validation" if options.choose else "test"
    title = f"{Path(options.photos).name}, {split} classes, {options.images:,} training images"
    entries = summary(rows, list(SCORES))
    console.print(summary_table(entries, title, SCORES, {"rate": "lr", "batch": "batch"}))
    labels = {name: f"{name.replace('recall', 'Recall')} on unseen classes, %" for name in SCORES}
    draw_summary(entries, title, labels, ["batch"]).savefig(folder / "photographs.png", dpi=110)


if __name__ == "__main__":
    keep_freed_memory()
    main()
