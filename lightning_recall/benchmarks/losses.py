"""Every loss on the same network and data, at equal images seen: Recall@1, Recall@4, mAP@R and seconds.

The learning rate of each loss is chosen on the validation classes, with the first seed; then it is trained with every
seed and judged on the test classes. Glyphs are drawn here; --omniglot takes handwriting from a folder.
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
from lightning_recall.mixup import SimilarityMixup
from lightning_recall.models import ImageEmbedder, SmallConvNet
from lightning_recall.modules import RetrievalModule

DIM = 128
RATES = (0.003, 0.01, 0.03)
SCORES = ("recall@1", "recall@4", "map@r")


class Way(NamedTuple):
    """What is trained.

    loss: number of classes -> loss.
    mixup: makes more of a batch; None: nothing.
    proxy_rate: learning rate of the loss's parameters over the network's.
    schedule: settings that change with the epochs, for `AttributeScheduler`; None: none do.
    """

    loss: Callable[[int], nn.Module]
    mixup: Callable[[], nn.Module] | None = None
    proxy_rate: float = 10.0
    schedule: dict[str, dict[int, Any]] | None = None


def beside(loss: Callable[[], nn.Module], weight: float, classes: int) -> nn.Module:
    """A loss and, with the rest of the weight, the softmax over proxies."""
    return losses.MultipleLosses([loss(), losses.NormalizedSoftmaxLoss(classes, DIM)], [weight, 1 - weight])


def recipe(classes: int) -> nn.Module:
    """A wider rank temperature, and proxies that join when they know something of each class.

    Until then a weight too small to move the network lets them learn: AdamW's steps do not depend on it.
    """
    return losses.MultipleLosses(
        [losses.RecallAtKLoss(rank_temperature=0.05), losses.ProxyAnchorLoss(classes, DIM)], [1.0, 0.001]
    )


def other(name: str) -> Callable[[int], nn.Module]:
    """A loss of pytorch-metric-learning, if it is installed."""

    def make(_: int) -> nn.Module:
        import pytorch_metric_learning.losses as theirs

        made: nn.Module = getattr(theirs, name)()
        return made

    return make


WAYS = {
    "recipe": Way(recipe, proxy_rate=100.0, schedule={"loss.weights": {5: [1.0, 0.001], 8: [0.9, 0.1]}}),
    "RecallAtK": Way(lambda _: losses.RecallAtKLoss()),
    "RecallAtK, 0.05": Way(lambda _: losses.RecallAtKLoss(rank_temperature=0.05)),
    "RecallAtK, SiMix": Way(lambda _: losses.RecallAtKLoss(), SimilarityMixup),
    "RecallAtK, proxies": Way(partial(beside, losses.RecallAtKLoss, 0.9)),
    "SupRecallAtK": Way(lambda _: losses.SupRecallAtKLoss()),
    "SupRecallAtK, proxies": Way(partial(beside, losses.SupRecallAtKLoss, 0.9)),
    "SmoothAP": Way(lambda _: losses.SmoothAPLoss()),
    "SmoothAP, 0.05": Way(lambda _: losses.SmoothAPLoss(rank_temperature=0.05)),
    "SupAP, proxies": Way(partial(beside, losses.SupAPLoss, 0.9)),
    "UniLoss": Way(lambda _: losses.UniLoss()),
    "Circle": Way(lambda _: losses.CircleLoss()),
    "contrastive": Way(lambda _: losses.ContrastiveLoss()),
    "proxy softmax": Way(lambda classes: losses.NormalizedSoftmaxLoss(classes, DIM)),
    "MultiSimilarity (PML)": Way(other("MultiSimilarityLoss")),
    "SupCon (PML)": Way(other("SupConLoss")),
    "ProxyAnchor": Way(lambda classes: losses.ProxyAnchorLoss(classes, DIM), proxy_rate=100.0),
}


class Run(NamedTuple):
    """One training: its score on the validation classes, those on the test classes, and its seconds."""

    validation: float
    test: dict[str, float]
    seconds: float


def train(way: Way, data: RetrievalDataModule, steps: int, rate: float, seed: int, judged: bool) -> Run:
    """Trains and scores; on the test classes only if it is to be `judged`."""
    seed_everything(seed, verbose=False)
    data.seed = 0  # the same validation classes for all
    data.setup("fit")
    assert data.train_data is not None  # both data sets have one
    names, data.train_data.labels = np.unique(data.train_data.labels, return_inverse=True)  # as proxies of others want
    classes = len(names)
    module = RetrievalModule(
        ImageEmbedder(SmallConvNet(), DIM, norm="batch"),
        way.loss(classes),
        None if way.mixup is None else way.mixup(),
        chunk_size=data.batch_size,
        optimizer=partial(torch.optim.AdamW, lr=rate),
        loss_lr=way.proxy_rate * rate,
        lr_scheduler=lambda optimizer: OneCycleLR(
            optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps, pct_start=0.05
        ),
        lr_interval="step",
    )
    start = time.perf_counter()
    scheduled = [] if way.schedule is None else [AttributeScheduler(way.schedule)]
    quiet_trainer(max_epochs=-1, max_steps=steps, limit_val_batches=0, callbacks=scheduled).fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    judge = quiet_trainer(callbacks=[RetrievalEvaluation((1, 4), ("recall", "map@r"))])
    (validation,) = judge.validate(module, data.val_dataloader(), verbose=False)
    test = judge.test(module, data.test_dataloader(), verbose=False)[0] if judged else {}
    return Run(validation["val/recall@1"], {name: test[f"test/{name}"] for name in SCORES if test}, seconds)


def quiet_trainer(**kwargs: Any) -> Trainer:
    """A Trainer that writes nothing."""
    silent: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="auto", devices=1, enable_model_summary=False, **silent, **kwargs)


def best_rate(way: Way, data: RetrievalDataModule, steps: int, rates: Sequence[float]) -> float:
    """The learning rate with the highest Recall@1 on the validation classes."""
    return max(rates, key=lambda rate: train(way, data, steps, rate, 0, judged=False).validation)


def compare(
    names: Sequence[str], data: RetrievalDataModule, images: int, seeds: int, rates: Sequence[float]
) -> list[dict[str, Any]]:
    """A row for each loss: its scores on the test classes in percent, mean and spread over the seeds."""
    rows = []
    steps = max(images // data.batch_size, 2)
    for name in track(names, f"{type(data).__name__}, {steps} steps of {data.batch_size}"):
        rate = best_rate(WAYS[name], data, steps, rates) if len(rates) > 1 else rates[0]
        runs = [train(WAYS[name], data, steps, rate, seed, judged=True) for seed in range(seeds)]
        row: dict[str, Any] = {"loss": name, "batch": data.batch_size, "steps": steps, "lr": rate, "seeds": seeds}
        for score in SCORES:
            values = [100 * run.test[score] for run in runs]
            row[score] = statistics.mean(values)
            row[f"{score} spread"] = statistics.stdev(values) if seeds > 1 else 0.0
        rows.append({**row, "seconds": statistics.median(run.seconds for run in runs)})
    return rows


def show(rows: list[dict[str, Any]], title: str) -> Table:
    """The rows, best first."""
    table = Table("loss", "batch", "lr", *(name.replace("recall", "R") for name in SCORES), "s", title=title)
    for row in sorted(rows, key=lambda row: -row["recall@1"]):
        scores = [f"{row[name]:.1f} ± {row[f'{name} spread']:.1f}" for name in SCORES]
        table.add_row(row["loss"], f"{row['batch']:,}", f"{row['lr']:g}", *scores, f"{row['seconds']:.1f}")
    return table


def draw(rows: list[dict[str, Any]], title: str) -> Figure:
    """Recall@1 of each loss and batch size, with its spread."""
    ordered = sorted(rows, key=lambda row: row["recall@1"])
    figure = Figure(figsize=(8, 0.32 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['loss']}, {row['batch']}" for row in ordered]
    means = [row["recall@1"] for row in ordered]
    axes.errorbar(means, range(len(rows)), xerr=[row["recall@1 spread"] for row in ordered], fmt="o", capsize=3)
    axes.set_yticks(range(len(rows)), names)
    axes.set(xlabel="Recall@1 on unseen classes, %, mean and standard deviation", title=title)
    axes.grid(alpha=0.3)
    return figure


def main(args: list[str] | None = None) -> None:
    """Prints one table a data set, and writes it as CSV and as a picture if asked to."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.losses", description=__doc__)
    parser.add_argument("--losses", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="NAME", help="which")
    parser.add_argument("--images", type=int, default=55_000, help="seen in a training")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256], help="images in a batch, 4 a class")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each loss")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates to choose from")
    parser.add_argument("--omniglot", metavar="DIR", help="a folder with images_background_small1.zip and small2.zip")
    parser.add_argument("--no-glyphs", action="store_true", help="compare on the handwriting only")
    parser.add_argument("--output", metavar="DIR", help="where to write losses_DATA.csv and losses_DATA.png")
    given = parser.parse_args(args)
    if given.no_glyphs and given.omniglot is None:
        parser.error("--no-glyphs leaves nothing to compare on: give --omniglot DIR.")
    console = Console()
    console.print(machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    makers: list[Callable[..., RetrievalDataModule]] = [] if given.no_glyphs else [GlyphsDataModule]
    if given.omniglot is not None:
        makers.append(partial(Handwriting, given.omniglot))
    for make in makers:
        rows = []
        for batch_size in given.batch_sizes:
            data = make(batch_size=batch_size, samples_per_class=4, val_classes=0.2)
            data.prepare_data()
            rows += compare(given.losses, data, given.images, given.seeds, given.rates)
        name = type(data).__name__.removesuffix("DataModule").lower()
        title = f"{name}, {given.images:,} images seen, {given.seeds} seeds"
        console.print(show(rows, title))
        if given.output:
            folder = Path(given.output)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"losses_{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
            draw(rows, title).savefig(folder / f"losses_{name}.png", dpi=110)


if __name__ == "__main__":
    main()
