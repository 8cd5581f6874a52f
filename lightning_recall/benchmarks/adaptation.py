"""Trains digit classifiers on MNIST for USPS and back with each method, in the sampled protocol of the literature.

Each draw takes 2,000 training images of MNIST and 1,800 of USPS; the labels of the target are used for scores only.
Target accuracy is that on images which are in no training: 4,000 other MNIST images of the file, in random order, or
the 2,007 test images of USPS. After each run, a row is appended to adaptation.csv, and after each epoch to
adaptation_epochs.csv. A run that is already in the file is not repeated, and an interrupted run continues from its
checkpoint. Start the command twice, with different --draws and the same --output, to use two cores.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console

from lightning_recall._lightning import PACKAGE, Callback, LightningModule, ModelCheckpoint, Trainer
from lightning_recall.adaptation.datamodules import DigitsAdaptationDataModule
from lightning_recall.adaptation.module import AdaptationModule
from lightning_recall.adaptation.scores import VALIDATORS, DomainScores
from lightning_recall.benchmarks.adaptation_methods import METHODS, build
from lightning_recall.benchmarks.adaptation_report import choice_table, correlation_table, runs_of
from lightning_recall.benchmarks.measure import machine
from lightning_recall.benchmarks.result_rows import append_row, draw_summary, pending, read_rows, rows_of, summary
from lightning_recall.evaluation_mode import evaluation_mode
from lightning_recall.memory_allocation import keep_freed_memory

DOMAINS: tuple[Literal["mnist", "usps"], ...] = ("mnist", "usps")
MAX_SCORED = {"source_test": 1000, "target_test": 4000, "target_train": 4000}  # images, for speed
EVAL_BATCH = 500
PLOTTED = {"target_test": "target accuracy, %", "source_test": "source accuracy, %"}


class Setting(NamedTuple):
    """What the scores of a run depend on; kl and width are the weight of the KL divergence and the width of DM-ADA."""

    method: str
    source: Literal["mnist", "usps"]
    draw: int
    epochs: int
    precision: str
    kl: float = 1.0
    width: int = 64


KEYS = Setting._fields


def digits_of(setting: Setting, digits: str) -> DigitsAdaptationDataModule:
    """The images of a draw."""
    target = next(name for name in DOMAINS if name != setting.source)
    size = METHODS[setting.method].image_size
    data = DigitsAdaptationDataModule(
        digits, setting.source, target, size, draw=setting.draw, val_fraction=0, seed=setting.draw
    )
    data.setup("fit")
    return data


class EpochScores(Callback):
    """Appends the scores after each epoch to a CSV file."""

    def __init__(self, path: Path, setting: Setting, data: DigitsAdaptationDataModule) -> None:
        self.path, self.setting, self.data = path, setting, data
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the module."""
        assert isinstance(pl_module, AdaptationModule)
        scores = score(pl_module, self.data)
        seconds = round(time.perf_counter() - self.start, 1)
        append_row(
            self.path, {**self.setting._asdict(), "epoch": trainer.current_epoch + 1, **scores, "seconds": seconds}
        )


@torch.no_grad()
def score(module: AdaptationModule, data: DigitsAdaptationDataModule) -> dict[str, float]:
    """Accuracy in percent on both domains, and the validators of the target, which need no labels."""
    parts = {
        "source_test": data.domains["source"]["test"],
        "target_test": data.domains["target"]["test"],
        "target_train": data.domains["target"]["val"],  # the training images, with labels
    }
    row: dict[str, float] = {}
    for name, part in parts.items():
        scores = DomainScores(data.num_classes)
        images, labels = part.images[: MAX_SCORED[name]], torch.from_numpy(part.labels[: MAX_SCORED[name]])
        for start in range(0, len(labels), EVAL_BATCH):
            chosen = slice(start, start + EVAL_BATCH)
            with evaluation_mode(module):
                scores.update(module(images[chosen].to(module.device)).cpu(), labels[chosen])
        found = scores.compute()
        row[name] = round(100 * found["accuracy"].item(), 3)
        if name != "source_test":
            row |= {f"{name}_{validator}": round(found[validator].item(), 6) for validator in VALIDATORS}
    return row


def run(setting: Setting, digits: str, folder: Path) -> dict[str, Any]:
    """Trains one method on one draw and scores the last epoch."""
    data = digits_of(setting, digits)
    module = build(setting.method, setting.draw, setting.kl, setting.width)
    name = "-".join(map(str, setting)).replace(" ", "_")
    checkpoint = folder / "checkpoints" / f"{name}.ckpt"
    saver = ModelCheckpoint(
        checkpoint.parent, filename=name, every_n_epochs=1, enable_version_counter=False, save_on_train_epoch_end=True
    )
    start = time.perf_counter()
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=setting.epochs,
        precision=setting.precision,  # type: ignore[arg-type]  # Lightning checks the string
        logger=False,
        callbacks=[EpochScores(folder / "adaptation_epochs.csv", setting, data), saver],
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if checkpoint.exists() else None)
    seconds = round(time.perf_counter() - start, 1)
    row = {**setting._asdict(), **score(module, data), "seconds": seconds}
    checkpoint.unlink(missing_ok=True)
    return row


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser("lightning_recall.benchmarks.adaptation", description=__doc__)
    add, names = made.add_argument, list(METHODS)
    add("--digits", required=True, metavar="FILE", help="npz file of DigitsAdaptationDataModule")
    add("--methods", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}")
    add("--sources", nargs="+", choices=DOMAINS, default=DOMAINS, metavar="NAME", help="mnist, usps")
    add("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of the images and the training")
    add("--epochs", type=int, default=50, help="of 18 batches")
    add("--kl", type=float, default=1.0, help="weight of DM-ADA's KL divergence")
    add("--width", type=int, default=64, help="channels of DM-ADA's first layers; the released code has 64")
    add("--precision", default="bf16-mixed", help="of the Trainer; 32-true takes about 1.6 times as long")
    add("--threads", type=int, default=1, help="of torch")
    add("--report", action="store_true", help="only print the tables and draw the plot of the runs in --output")
    add("--output", default="adaptation", metavar="DIR", help="folder for the CSV files and adaptation.png")
    return made


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """The runs that the options ask for: draw by draw, all methods."""
    kl = {method: options.kl if method.startswith("DM-ADA") else 1.0 for method in options.methods}
    width = {method: options.width if "DM-ADA" in method else 64 for method in options.methods}
    return [
        Setting(method, source, draw, options.epochs, options.precision, kl[method], width[method])
        for draw in options.draws
        for source in options.sources
        for method in options.methods
    ]


def main(args: list[str] | None = None) -> None:
    """Runs what is not in the CSV file yet, prints the tables and draws a plot."""
    options = parser().parse_args(args)
    console, folder = Console(), Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)  # the devices of each Trainer
    warnings.filterwarnings("ignore", "Checkpoint directory")  # that of an interrupted run
    torch.set_num_threads(options.threads)
    console.print(machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    path = folder / "adaptation.csv"
    for setting in [] if options.report else settings_of(options):
        if pending([setting], read_rows(path)):
            console.print(", ".join(map(str, setting)))
            append_row(path, run(setting, options.digits, folder))
    report(console, folder, read_rows(path) if options.report else rows_of(settings_of(options), read_rows(path)))


def report(console: Console, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the tables of some runs and draws their plot."""
    finished = {tuple(str(row[key]) for key in KEYS) for row in rows}
    groups: dict[tuple[str, str], list[Sequence[Mapping[str, Any]]]] = {}
    for setting, epochs in runs_of(read_rows(folder / "adaptation_epochs.csv"), KEYS).items():
        if setting in finished:
            row = dict(zip(KEYS, setting, strict=True))
            groups.setdefault((title_of(row), row["source"]), []).append(epochs)
    console.print(choice_table(groups))
    console.print(correlation_table(groups))
    named = [{**row, "method": title_of(row), "domains": direction(row["source"])} for row in rows]
    entries = summary(named, list(PLOTTED), ("method", "domains"))
    draw_summary(entries, "Digits, sampled protocol, last epoch", PLOTTED, ["domains"]).savefig(
        folder / "adaptation.png", dpi=110
    )


def direction(source: str) -> str:
    """The domains of a run: "mnist" -> "MNIST to USPS"."""
    (target,) = set(DOMAINS) - {source}
    return f"{source.upper()} to {target.upper()}"


def title_of(row: Mapping[str, Any]) -> str:
    """Method of a row, with the settings that are not those of the released code."""
    title = str(row["method"])
    if float(row["kl"]) != 1:
        title += f", KL {float(row['kl']):g}"
    return title if int(row["width"]) == 64 else f"{title}, width {row['width']}"


if __name__ == "__main__":
    keep_freed_memory()
    main()
