"""Trains digit classifiers on MNIST for USPS and back with each method, in the sampled protocol of the literature.

Each draw takes 2,000 training images of MNIST and 1,800 of USPS; the labels of the target are used for scores only.
Target accuracy is that on images which are in no training: all other MNIST images of the file, or the test images of
USPS. After each run, a row is appended to adaptation.csv, and after each epoch to adaptation_epochs.csv. A run that is
already in the file is not repeated, and an interrupted run continues from its checkpoint. Start the command twice, with
different --draws and the same --output, to use two cores.
"""

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms.v2 import functional as tv

from lightning_recall._lightning import PACKAGE, Callback, LightningModule, ModelCheckpoint, Trainer
from lightning_recall.adaptation.data.pairs import DomainPairs, PairedBatchSampler, PairedLoader
from lightning_recall.adaptation.module import AdaptationModule
from lightning_recall.benchmarks.adaptation_methods import METHODS, build
from lightning_recall.benchmarks.adaptation_report import choice_table, correlation_table, runs_of
from lightning_recall.benchmarks.measure import machine
from lightning_recall.benchmarks.result_rows import append_row, draw_summary, pending, read_rows, rows_of, summary
from lightning_recall.memory_allocation import keep_freed_memory

SAMPLED = {"mnist": 2000, "usps": 1800}
"""training images of each domain"""
BATCH_SIZE = 100
MAX_SCORED = 4000  # test images
PLOTTED = {"target_test": "target accuracy, %", "source_test": "source accuracy, %"}

Domains = dict[str, dict[str, tuple[Tensor, Tensor]]]
"""domain -> "train" or "test" -> images (N, 3, H, W) uint8 and labels (N,)"""


class Setting(NamedTuple):
    """What the scores of a run depend on; kl is the weight of DM-ADA's KL divergence."""

    method: str
    source: str
    draw: int
    epochs: int
    precision: str
    kl: float = 1.0


KEYS = Setting._fields


def images_and_labels(images: NDArray[np.uint8], labels: NDArray[Any], size: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, size, size) of greyscale images (N, H, W), and labels."""
    resized = tv.resize(torch.from_numpy(images)[:, None], [size, size], antialias=True)
    return resized.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels).long()


def draw_domains(path: Path, draw: int, size: int) -> Domains:
    """The images of a draw.

    Args:
        path: npz file with `mnist_images`, `mnist_labels`, `usps_train_images`, `usps_train_labels`,
            `usps_test_images` and `usps_test_labels`.
        draw: seed.
        size: height and width of the images.
    """
    with np.load(path) as arrays:
        mnist, usps, usps_test = (
            images_and_labels(arrays[f"{name}_images"], arrays[f"{name}_labels"], size)
            for name in ("mnist", "usps_train", "usps_test")
        )
    rng = np.random.default_rng((1803, draw))
    mnist_order = torch.from_numpy(rng.permutation(len(mnist[1])))
    usps_order = torch.from_numpy(rng.permutation(len(usps[1])))[: SAMPLED["usps"]]
    train, test = mnist_order[: SAMPLED["mnist"]], mnist_order[SAMPLED["mnist"] :]
    return {
        "mnist": {"train": (mnist[0][train], mnist[1][train]), "test": (mnist[0][test], mnist[1][test])},
        "usps": {"train": (usps[0][usps_order], usps[1][usps_order]), "test": usps_test},
    }


class EpochScores(Callback):
    """Appends the scores after each epoch to a CSV file."""

    def __init__(self, path: Path, setting: Setting, domains: Domains) -> None:
        self.path, self.setting, self.domains = path, setting, domains
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the module."""
        assert isinstance(pl_module, AdaptationModule)
        scores = score(pl_module, self.domains, self.setting.source)
        seconds = round(time.perf_counter() - self.start, 1)
        append_row(
            self.path, {**self.setting._asdict(), "epoch": trainer.current_epoch + 1, **scores, "seconds": seconds}
        )


@torch.no_grad()
def score(module: AdaptationModule, domains: Domains, source: str) -> dict[str, float]:
    """Accuracy in percent on both domains, and the validators of the target, which need no labels."""
    (target,) = set(domains) - {source}
    row = {}
    parts = {
        "source_test": domains[source]["test"],
        "target_test": domains[target]["test"],
        "target_train": domains[target]["train"],
    }
    for name, (images, labels) in parts.items():
        images, labels = images[:MAX_SCORED], labels[:MAX_SCORED]
        probabilities = predict(module, images)
        row[name] = round(100 * (probabilities.argmax(1) == labels).double().mean().item(), 3)
        if name != "source_test":
            mean = probabilities.mean(0)
            entropy = -torch.special.xlogy(probabilities, probabilities).sum(1).mean()
            row[f"{name}_im"] = round((-torch.special.xlogy(mean, mean).sum() - entropy).item(), 6)
            row[f"{name}_bnm"] = round((torch.linalg.matrix_norm(probabilities, "nuc") / len(labels)).item(), 6)
            row[f"{name}_entropy"] = round(entropy.item(), 6)
    return row


def predict(module: AdaptationModule, images: Tensor) -> Tensor:
    """Probabilities (N, K) in float64; the module is in training mode afterwards."""
    module.eval()
    logits = torch.cat([module(part.to(module.device)) for part in images.split(500)])
    module.train()
    return logits.double().softmax(1).cpu()


def run(setting: Setting, digits: Path, folder: Path) -> dict[str, Any]:
    """Trains one method on one draw and scores the last epoch."""
    method = METHODS[setting.method]
    domains = draw_domains(digits, setting.draw, method.image_size)
    (target,) = set(domains) - {setting.source}
    module = build(setting.method, setting.draw, setting.kl)
    pairs = DomainPairs(TensorDataset(*domains[setting.source]["train"]), TensorDataset(domains[target]["train"][0]))
    sampler = PairedBatchSampler(*(len(domains[name]["train"][1]) for name in (setting.source, target)), BATCH_SIZE)
    sampler.seed = setting.draw
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
        callbacks=[EpochScores(folder / "adaptation_epochs.csv", setting, domains), saver],
        enable_model_summary=False,
    )
    trainer.fit(module, PairedLoader(pairs, sampler), ckpt_path=str(checkpoint) if checkpoint.exists() else None)
    seconds = round(time.perf_counter() - start, 1)
    row = {**setting._asdict(), **score(module, domains, setting.source), "seconds": seconds}
    checkpoint.unlink(missing_ok=True)
    return row


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser("lightning_recall.benchmarks.adaptation", description=__doc__)
    add, names = made.add_argument, list(METHODS)
    add("--digits", required=True, metavar="FILE", help="npz file with the digits of MNIST and USPS: see draw_domains")
    add("--methods", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}")
    add("--sources", nargs="+", choices=list(SAMPLED), default=list(SAMPLED), metavar="NAME", help="mnist, usps")
    add("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of the images and the training")
    add("--epochs", type=int, default=50, help="of 18 batches")
    add("--kl", type=float, default=1.0, help="weight of DM-ADA's KL divergence")
    add("--precision", default="bf16-mixed", help="of the Trainer; 32-true takes about 1.6 times as long")
    add("--threads", type=int, default=1, help="of torch")
    add("--report", action="store_true", help="only print the tables and draw the plot of the runs in --output")
    add("--output", default="adaptation", metavar="DIR", help="folder for the CSV files and adaptation.png")
    return made


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """The runs that the options ask for: draw by draw, all methods."""
    kl = {method: options.kl if method.startswith("DM-ADA") else 1.0 for method in options.methods}
    return [
        Setting(method, source, draw, options.epochs, options.precision, kl[method])
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
    torch.set_num_threads(options.threads)
    console.print(machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    path = folder / "adaptation.csv"
    for setting in [] if options.report else settings_of(options):
        if pending([setting], read_rows(path)):
            console.print(", ".join(map(str, setting)))
            append_row(path, run(setting, Path(options.digits), folder))
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
    named = [{**row, "method": title_of(row)} for row in rows]
    entries = summary(named, list(PLOTTED), ("method", "source"))
    draw_summary(entries, "Digits, sampled protocol, last epoch", PLOTTED, ["source"]).savefig(
        folder / "adaptation.png", dpi=110
    )


def title_of(row: Mapping[str, Any]) -> str:
    """Method of a row, with the weight of the KL divergence if it is not the released one."""
    return row["method"] if float(row["kl"]) == 1 else f"{row['method']}, KL {float(row['kl']):g}"


if __name__ == "__main__":
    keep_freed_memory()
    main()
