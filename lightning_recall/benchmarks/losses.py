"""Every loss on the same network and data, with the same number of training images.

Prints Recall@1, Recall@4, mAP@R and seconds. The learning rate of each loss is chosen on the validation classes, with
the first seed; then the loss is trained with every seed and evaluated on the test classes. Glyphs are generated;
--omniglot adds handwriting from a folder.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from lightning_recall import losses
from lightning_recall._lightning import Trainer, seed_everything
from lightning_recall.benchmarks.handwriting import Handwriting
from lightning_recall.benchmarks.measure import machine
from lightning_recall.callbacks import AttributeScheduler, RetrievalEvaluation
from lightning_recall.datamodules import GlyphsDataModule, RetrievalDataModule
from lightning_recall.memory_allocation import keep_freed_memory
from lightning_recall.mixup import SimilarityMixup
from lightning_recall.models import ImageEmbedder, SmallConvNet
from lightning_recall.modules import RetrievalModule

DIM = 128
RATES = (0.003, 0.01, 0.03)
SCORES = ("recall@1", "recall@4", "map@r")


class LossConfig(NamedTuple):
    """Loss, mixup and schedule of one benchmark entry.

    loss: builds the loss from the number of classes.
    mixup: builds the mixup, or None.
    proxy_lr_ratio: ratio of the proxies' learning rate to the network's.
    schedule: settings by epoch for `AttributeScheduler`, or None.
    """

    loss: Callable[[int], nn.Module]
    mixup: Callable[[], nn.Module] | None = None
    proxy_lr_ratio: float = 10.0
    schedule: dict[str, dict[int, Any]] | None = None


def with_proxies(loss: Callable[[], nn.Module], weight: float, classes: int) -> nn.Module:
    """Weight * loss + (1 - weight) * normalized softmax."""
    return losses.MultipleLosses([loss(), losses.NormalizedSoftmaxLoss(classes, DIM)], [weight, 1 - weight])


def recipe(classes: int) -> nn.Module:
    """A larger rank temperature, and a proxy loss that starts once the proxies are trained.

    Until then the proxy loss has a small weight: AdamW still trains the proxies, because it is scale-invariant, and the
    network is not affected.
    """
    return losses.MultipleLosses(
        [losses.RecallAtKLoss(rank_temperature=0.05), losses.ProxyAnchorLoss(classes, DIM)], [1.0, 0.001]
    )


def pml_loss(name: str) -> Callable[[int], nn.Module]:
    """Returns a function that builds a loss of pytorch-metric-learning, which must be installed."""

    def build(_: int) -> nn.Module:
        import pytorch_metric_learning.losses as pml_losses

        loss: nn.Module = getattr(pml_losses, name)()
        return loss

    return build


LOSSES = {
    "recipe": LossConfig(recipe, proxy_lr_ratio=100.0, schedule={"loss.weights": {5: [1.0, 0.001], 8: [0.9, 0.1]}}),
    "RecallAtK": LossConfig(lambda _: losses.RecallAtKLoss()),
    "RecallAtK, 0.05": LossConfig(lambda _: losses.RecallAtKLoss(rank_temperature=0.05)),
    "RecallAtK, SiMix": LossConfig(lambda _: losses.RecallAtKLoss(), SimilarityMixup),
    "RecallAtK, proxies": LossConfig(partial(with_proxies, losses.RecallAtKLoss, 0.9)),
    "SupRecallAtK": LossConfig(lambda _: losses.SupRecallAtKLoss()),
    "SupRecallAtK, proxies": LossConfig(partial(with_proxies, losses.SupRecallAtKLoss, 0.9)),
    "SmoothAP": LossConfig(lambda _: losses.SmoothAPLoss()),
    "SmoothAP, 0.05": LossConfig(lambda _: losses.SmoothAPLoss(rank_temperature=0.05)),
    "SupAP, proxies": LossConfig(partial(with_proxies, losses.SupAPLoss, 0.9)),
    "UniLoss": LossConfig(lambda _: losses.UniLoss()),
    "Circle": LossConfig(lambda _: losses.CircleLoss()),
    "contrastive": LossConfig(lambda _: losses.ContrastiveLoss()),
    "normalized softmax": LossConfig(lambda classes: losses.NormalizedSoftmaxLoss(classes, DIM)),
    "MultiSimilarity (PML)": LossConfig(pml_loss("MultiSimilarityLoss")),
    "SupCon (PML)": LossConfig(pml_loss("SupConLoss")),
    "ProxyAnchor": LossConfig(lambda classes: losses.ProxyAnchorLoss(classes, DIM), proxy_lr_ratio=100.0),
}


class Run(NamedTuple):
    """Result of one training: validation Recall@1, test scores and training time in seconds."""

    validation: float
    test: dict[str, float]
    seconds: float


def train(
    config: LossConfig, data: RetrievalDataModule, steps: int, rate: float, seed: int, evaluate_test: bool
) -> Run:
    """Trains, then evaluates on the validation classes and, with `evaluate_test`, on the test classes."""
    seed_everything(seed, verbose=False)
    data.seed = 0  # the same validation classes for all losses
    data.setup("fit")
    assert data.train_data is not None  # both data sets have training data
    # PML's proxy losses need labels 0..C-1
    names, data.train_data.labels = np.unique(data.train_data.labels, return_inverse=True)
    classes = len(names)
    module = RetrievalModule(
        ImageEmbedder(SmallConvNet(), DIM, norm="batch"),
        config.loss(classes),
        None if config.mixup is None else config.mixup(),
        chunk_size=data.batch_size,
        optimizer=partial(torch.optim.AdamW, lr=rate),
        loss_lr=config.proxy_lr_ratio * rate,
        lr_scheduler=lambda optimizer: OneCycleLR(
            optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps, pct_start=0.05
        ),
        lr_interval="step",
    )
    start = time.perf_counter()
    callbacks = [] if config.schedule is None else [AttributeScheduler(config.schedule)]
    quiet_trainer(max_epochs=-1, max_steps=steps, limit_val_batches=0, callbacks=callbacks).fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    evaluator = quiet_trainer(callbacks=[RetrievalEvaluation((1, 4), ("recall", "map@r"))])
    (validation,) = evaluator.validate(module, data.val_dataloader(), verbose=False)
    test = evaluator.test(module, data.test_dataloader(), verbose=False)[0] if evaluate_test else {}
    return Run(validation["val/recall@1"], {name: test[f"test/{name}"] for name in SCORES if test}, seconds)


def quiet_trainer(**kwargs: Any) -> Trainer:
    """A Trainer without logger, checkpoints and progress bar."""
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="auto", devices=1, enable_model_summary=False, **quiet, **kwargs)


def best_rate(config: LossConfig, data: RetrievalDataModule, steps: int, rates: Sequence[float]) -> float:
    """The learning rate with the highest Recall@1 on the validation classes."""
    return max(rates, key=lambda rate: train(config, data, steps, rate, 0, evaluate_test=False).validation)


def benchmark_losses(
    names: Sequence[str], data: RetrievalDataModule, images: int, seeds: int, rates: Sequence[float]
) -> list[dict[str, Any]]:
    """A row for each loss: test scores in percent, mean and standard deviation over the seeds."""
    rows = []
    steps = max(images // data.batch_size, 2)
    for name in track(names, f"{type(data).__name__}, {steps} steps of {data.batch_size}"):
        rate = best_rate(LOSSES[name], data, steps, rates) if len(rates) > 1 else rates[0]
        runs = [train(LOSSES[name], data, steps, rate, seed, evaluate_test=True) for seed in range(seeds)]
        row: dict[str, Any] = {"loss": name, "batch": data.batch_size, "steps": steps, "lr": rate, "seeds": seeds}
        for score in SCORES:
            values = [100 * run.test[score] for run in runs]
            row[score] = statistics.mean(values)
            row[f"{score} std"] = statistics.stdev(values) if seeds > 1 else 0.0
        rows.append({**row, "seconds": statistics.median(run.seconds for run in runs)})
    return rows


def results_table(rows: list[dict[str, Any]], title: str) -> Table:
    """The rows, best first."""
    table = Table("loss", "batch", "lr", *(name.replace("recall", "R") for name in SCORES), "s", title=title)
    for row in sorted(rows, key=lambda row: -row["recall@1"]):
        scores = [f"{row[name]:.1f} ± {row[f'{name} std']:.1f}" for name in SCORES]
        table.add_row(row["loss"], f"{row['batch']:,}", f"{row['lr']:g}", *scores, f"{row['seconds']:.1f}")
    return table


def draw_results(rows: list[dict[str, Any]], title: str) -> Figure:
    """Plots Recall@1 of each loss and batch size, with its standard deviation."""
    ordered = sorted(rows, key=lambda row: row["recall@1"])
    figure = Figure(figsize=(8, 0.32 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['loss']}, {row['batch']}" for row in ordered]
    means = [row["recall@1"] for row in ordered]
    axes.errorbar(means, range(len(rows)), xerr=[row["recall@1 std"] for row in ordered], fmt="o", capsize=3)
    axes.set_yticks(range(len(rows)), names)
    axes.set(xlabel="Recall@1 on unseen classes, %, mean and standard deviation", title=title)
    axes.grid(alpha=0.3)
    return figure


def main(args: list[str] | None = None) -> None:
    """Prints one table per data set and, with --output, writes it as CSV and as a plot."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.losses", description=__doc__)
    names = list(LOSSES)
    parser.add_argument("--losses", nargs="+", choices=names, default=names, metavar="NAME", help="losses to compare")
    parser.add_argument("--images", type=int, default=55_000, help="number of training images per run")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256], help="images in a batch, 4 per class")
    parser.add_argument("--seeds", type=int, default=3, help="training runs per loss")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates to choose from")
    parser.add_argument("--omniglot", metavar="DIR", help="a folder with images_background_small1.zip and small2.zip")
    parser.add_argument("--no-glyphs", action="store_true", help="use the handwriting only")
    parser.add_argument("--output", metavar="DIR", help="folder for losses_DATA.csv and losses_DATA.png")
    options = parser.parse_args(args)
    if options.no_glyphs and options.omniglot is None:
        parser.error("--no-glyphs requires --omniglot DIR")
    console = Console()
    console.print(machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    data_modules: list[Callable[..., RetrievalDataModule]] = [] if options.no_glyphs else [GlyphsDataModule]
    if options.omniglot is not None:
        data_modules.append(partial(Handwriting, options.omniglot))
    for data_module in data_modules:
        rows = []
        for batch_size in options.batch_sizes:
            data = data_module(batch_size=batch_size, samples_per_class=4, val_classes=0.2)
            data.prepare_data()
            rows += benchmark_losses(options.losses, data, options.images, options.seeds, options.rates)
        name = type(data).__name__.removesuffix("DataModule").lower()
        title = f"{name}, {options.images:,} training images, {options.seeds} seeds"
        console.print(results_table(rows, title))
        if options.output:
            folder = Path(options.output)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"losses_{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
            draw_results(rows, title).savefig(folder / f"losses_{name}.png", dpi=110)


if __name__ == "__main__":
    keep_freed_memory()
    main()
