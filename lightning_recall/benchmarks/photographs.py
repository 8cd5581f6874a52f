"""Fine-tunes a pretrained network on a folder of photographs with every loss, at an equal number of images.

The folder holds one folder for each class. The first half of the classes, in alphabetical order, is for training, the
second half for the test. With --choose, every third training class is used for validation instead, the test classes are
not read, and every rate of --rates is tried. Results are appended to photographs.csv after each run; a run that is
already in the file is not repeated, so an interrupted benchmark goes on where it stopped.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torchvision.transforms import v2

from lightning_recall import losses
from lightning_recall._lightning import EMAWeightAveraging, seed_everything
from lightning_recall.benchmarks.losses import pml_loss, quiet_trainer
from lightning_recall.benchmarks.measure import machine
from lightning_recall.callbacks import RetrievalEvaluation
from lightning_recall.data import ImageFiles, ImageTransforms
from lightning_recall.datamodules import RetrievalDataModule
from lightning_recall.datamodules.image_folder import list_images
from lightning_recall.datamodules.splits import image_files
from lightning_recall.mixup import SimilarityMixup
from lightning_recall.models import ImageEmbedder
from lightning_recall.modules import RetrievalModule
from lightning_recall.optimization import WarmupCosineLR
from lightning_recall.samplers import ClassBalancedBatchSampler

CHUNK = 64  # images per pass of the network
SCORES = ("recall@1", "map@r")
PRETRAINED = "pretrained features"


class Method(NamedTuple):
    """What is trained, and how.

    loss: builds the loss from the number of classes and the embedding dimension.
    rate: learning rate of the backbone, chosen on the validation classes; None: no training.
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


METHODS = {
    PRETRAINED: Method(without_classes(losses.RecallAtKLoss), None),
    "recipe": Method(without_classes(losses.RecallAtKLoss), 1e-4, average=0.97),
    "RecallAtK": Method(without_classes(losses.RecallAtKLoss), 1e-4),
    "RecallAtK, SiMix": Method(without_classes(losses.RecallAtKLoss), 1e-4, SimilarityMixup),
    "SupRecallAtK": Method(without_classes(losses.SupRecallAtKLoss), 1e-4),
    "SmoothAP": Method(without_classes(losses.SmoothAPLoss), 1e-4),
    "contrastive": Method(without_classes(losses.ContrastiveLoss), 1e-4),
    "MultiSimilarity (PML)": Method(without_classes(partial(pml_loss("MultiSimilarityLoss"), 0)), 1e-4),
    "SupCon (PML)": Method(without_classes(partial(pml_loss("SupConLoss"), 0)), 1e-4),
    "ProxyAnchor": Method(losses.ProxyAnchorLoss, 1e-4),
    "normalized softmax": Method(losses.NormalizedSoftmaxLoss, 1e-4),
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
    """One run: which method, at which learning rate and batch size, with which seed."""

    method: str
    rate: float
    batch: int
    seed: int


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


def run(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Trains one method and scores it on the test classes, or on the validation classes with `choose`."""
    method = METHODS[setting.method]
    seed_everything(setting.seed, verbose=False)
    resize = v2.Resize((options.test_size, options.test_size), antialias=True)  # the whole photograph
    transforms = ImageTransforms(size=options.size, min_scale=options.min_scale, eval_transform=resize)
    data = Photographs(
        options.photos,
        transforms,
        options.choose,
        batch_size=setting.batch,
        samples_per_class=method.samples_per_class,
        seed=setting.seed,
        num_workers=options.workers,
        sampler=partial(ClassBalancedBatchSampler, few_classes="repeat", small_classes="repeat"),
    )
    data.setup("fit")
    assert data.train_data is not None  # Photographs always reads training data
    names, data.train_data.labels = np.unique(data.train_data.labels, return_inverse=True)  # 0..C-1, for proxies
    module = build(method, options.weights, options.backbone, len(names), setting.rate)
    start = time.perf_counter()
    steps = max(options.images // setting.batch, 1)
    if method.rate is not None:
        callbacks = [EMAWeightAveraging(decay=method.average)] if method.average else []
        quiet_trainer(max_epochs=-1, max_steps=steps, limit_val_batches=0, callbacks=callbacks).fit(
            module, datamodule=data
        )
    seconds = time.perf_counter() - start
    evaluator = quiet_trainer(callbacks=[RetrievalEvaluation((1,), ("recall", "map@r"))])
    (scores,) = evaluator.test(module, data.test_dataloader(), verbose=False)
    row = {**setting._asdict(), "steps": steps, **{name: 100 * scores[f"test/{name}"] for name in SCORES}}
    return {**row, "seconds": round(seconds, 1)}


def pending(settings: Sequence[Setting], rows: Sequence[dict[str, Any]]) -> list[Setting]:
    """The settings that have no row yet."""
    done = {tuple(str(row[name]) for name in Setting._fields) for row in rows}
    return [setting for setting in settings if tuple(map(str, setting)) not in done]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of earlier runs; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Appends a row; a new file starts with the names of the columns."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of the scores over the seeds, best Recall@1 first."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], str(row["rate"]), str(row["batch"])), []).append(row)
    merged = []
    for (method, rate, batch), runs in groups.items():
        entry: dict[str, Any] = {"method": method, "rate": rate, "batch": batch, "seeds": len(runs)}
        for name in SCORES:
            values = [float(row[name]) for row in runs]
            entry[name] = statistics.mean(values)
            entry[f"{name} std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        merged.append({**entry, "seconds": statistics.median(float(row["seconds"]) for row in runs)})
    return sorted(merged, key=lambda entry: -entry["recall@1"])


def summary_table(entries: Sequence[dict[str, Any]], title: str) -> Table:
    """One line for each method, rate and batch size."""
    table = Table("method", "lr", "batch", "seeds", *(name.replace("recall", "R") for name in SCORES), "s", title=title)
    for entry in entries:
        scores = [f"{entry[name]:.1f} ± {entry[f'{name} std']:.1f}" for name in SCORES]
        trained = entry["method"] != PRETRAINED
        numbers = [entry["rate"], entry["batch"]] if trained else ["", ""]
        table.add_row(entry["method"], *numbers, str(entry["seeds"]), *scores, f"{entry['seconds']:.0f}")
    return table


def draw_summary(entries: Sequence[dict[str, Any]], title: str) -> Figure:
    """Plots Recall@1 and mAP@R of each entry with its standard deviation; a line marks the pretrained features."""
    ordered = list(reversed(entries))
    figure = Figure(figsize=(10, 0.32 * len(ordered) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(SCORES), sharey=True)
    names = [f"{entry['method']}, {entry['batch']}" for entry in ordered]
    for axes, name in zip(panels, SCORES, strict=True):
        means, spreads = [entry[name] for entry in ordered], [entry[f"{name} std"] for entry in ordered]
        axes.errorbar(means, range(len(ordered)), xerr=spreads, fmt="o", capsize=3)
        for entry in entries:
            if entry["method"] == PRETRAINED:
                axes.axvline(entry[name], linestyle=":", color="gray", label=PRETRAINED)
        axes.set_xlabel(f"{name.replace('recall', 'Recall')} on unseen classes, %")
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(ordered)), names)
    figure.suptitle(title)
    return figure


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser("lightning_recall.benchmarks.photographs", description=__doc__)
    add, names = made.add_argument, list(METHODS)
    add("--photos", required=True, metavar="DIR", help="a folder with one folder of photographs for each class")
    add("--weights", required=True, metavar="FILE", help="pretrained weights of the backbone")
    add("--backbone", default="tf_efficientnet_lite0", metavar="NAME", help="a timm model")
    add("--methods", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}")
    add("--images", type=int, default=9_600, help="number of training images per run")
    add("--batch-sizes", type=int, nargs="+", default=[96], help="images that the loss compares")
    add("--rates", type=float, nargs="+", help="learning rates; default: the one chosen for each method")
    add("--seeds", type=int, default=3, help="training runs of each method")
    add("--size", type=int, default=112, help="training images, pixels")
    add("--test-size", type=int, default=128, help="test images, pixels")
    add("--min-scale", type=float, default=0.3, help="smallest fraction of a photograph that a training crop shows")
    add("--workers", type=int, default=0, help="loader processes")
    add("--choose", action="store_true", help="score on a third of the training classes instead of the test classes")
    add("--output", default="photographs", metavar="DIR", help="folder for photographs.csv and photographs.png")
    return made


def main(args: list[str] | None = None) -> None:
    """Runs what is not in the CSV file yet, prints a table and draws a plot."""
    options = parser().parse_args(args)
    console, folder = Console(), Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "photographs.csv"
    settings = []
    for name, batch, seed in product(options.methods, options.batch_sizes, range(options.seeds)):
        rate = METHODS[name].rate
        rates = [0.0] if rate is None else options.rates or [rate]
        settings += [Setting(name, value, batch, seed) for value in rates]
    settings = [setting for setting in settings if setting.rate or setting[2:] == (options.batch_sizes[0], 0)]
    console.print(machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    for setting in track(pending(settings, read_rows(path)), "runs", console=console):
        append_row(path, run(setting, options))
    wanted = {tuple(map(str, setting)) for setting in settings}
    rows = [row for row in read_rows(path) if tuple(row[name] for name in Setting._fields) in wanted]
    split = "validation" if options.choose else "test"
    title = f"{Path(options.photos).name}, {split} classes, {options.images:,} training images"
    console.print(summary_table(summary(rows), title))
    draw_summary(summary(rows), title).savefig(folder / "photographs.png", dpi=110)


if __name__ == "__main__":
    main()
