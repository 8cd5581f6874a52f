"""Trains digits classifiers on MNIST for USPS and back, with each method, in the sampled protocol."""

import argparse
import csv
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms.v2 import functional as tv

from lightning_recall._lightning import PACKAGE, Callback, ModelCheckpoint, Trainer, seed_everything
from lightning_recall.adaptation.dann import DANNModule
from lightning_recall.adaptation.data.pairs import DomainPairs, PairedBatchSampler, PairedLoader
from lightning_recall.adaptation.dm_ada import DMADAModule, DMADAWeights
from lightning_recall.adaptation.domain_mixup import DomainMixup
from lightning_recall.adaptation.models.dann import DANNClassifier, DANNDiscriminator, DANNEncoder
from lightning_recall.adaptation.models.digits import (
    DigitDiscriminator,
    DigitEncoder,
    DigitGenerator,
    FeatureClassifier,
    GaussianEncoder,
)
from lightning_recall.adaptation.module import AdaptationModule
from lightning_recall.adaptation.source_only import SourceOnlyModule
from lightning_recall.benchmarks.result_rows import append_row, pending, read_rows
from lightning_recall.memory_allocation import keep_freed_memory

METHODS = ("source only", "DANN", "DANN + mixup", "source only, DM-ADA networks", "DM-ADA without mixup", "DM-ADA")
SIZES = {"mnist": 2000, "usps": 1800}
NUM_CLASSES = 10


class Setting(NamedTuple):
    method: str
    source: str
    draw: int
    epochs: int
    precision: str
    kl: float = 1.0


def resized(images: np.ndarray, labels: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """Images (N, 32, 32) uint8 and labels."""
    tensors = tv.resize(torch.from_numpy(images)[:, None], [size, size], antialias=True)
    return tensors.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels).long()


def draw_domains(path: Path, draw: int, size: int = 32) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Domain -> "train" (the sample) and "test" (all other MNIST images; the USPS test images)."""
    with np.load(path) as arrays:
        mnist = resized(arrays["mnist_images"], arrays["mnist_labels"], size)
        usps = resized(arrays["usps_train_images"], arrays["usps_train_labels"], size)
        usps_test = resized(arrays["usps_test_images"], arrays["usps_test_labels"], size)
    rng = np.random.default_rng((1803, draw))
    order = torch.from_numpy(rng.permutation(len(mnist[0])))
    chosen = torch.from_numpy(rng.permutation(len(usps[0])))
    take = lambda data, index: (data[0][index], data[1][index])
    return {
        "mnist": {"train": take(mnist, order[: SIZES["mnist"]]), "test": take(mnist, order[SIZES["mnist"] :])},
        "usps": {"train": take(usps, chosen[: SIZES["usps"]]), "test": usps_test},
    }


def build(setting: Setting) -> AdaptationModule:
    seed_everything(setting.draw, verbose=False)
    adam = partial(torch.optim.Adam, lr=1e-3)
    if setting.method.startswith("DM-ADA"):
        encoder = GaussianEncoder(DigitEncoder())
        module: AdaptationModule = DMADAModule(
            encoder,
            FeatureClassifier(encoder.feature_dim, NUM_CLASSES),
            DigitGenerator(encoder.feature_dim + NUM_CLASSES + 1 + 512),
            DigitDiscriminator(NUM_CLASSES),
            NUM_CLASSES,
            mixup=None if "without" in setting.method else DomainMixup(),
            weights=DMADAWeights(kl=setting.kl),
            seed=setting.draw,
        )
        module.discriminator.to(memory_format=torch.channels_last)
    elif "networks" in setting.method:
        released = partial(torch.optim.Adam, lr=5e-4, betas=(0.8, 0.999))
        module = SourceOnlyModule(DigitEncoder(), FeatureClassifier(128, NUM_CLASSES), NUM_CLASSES, optimizer=released)
    else:
        encoder, classifier = DANNEncoder(), DANNClassifier(800, NUM_CLASSES)
        if setting.method == "source only":
            module = SourceOnlyModule(encoder, classifier, NUM_CLASSES, optimizer=adam)
        else:
            mixup = DomainMixup(clip=0.3, levels=("feature",)) if "mixup" in setting.method else None
            module = DANNModule(
                encoder, classifier, DANNDiscriminator(800), NUM_CLASSES, mixup, seed=setting.draw, optimizer=adam
            )
    module.encoder.to(memory_format=torch.channels_last)
    return module


@torch.no_grad()
def predictions(module: AdaptationModule, images: Tensor) -> Tensor:
    module.eval()
    logits = torch.cat([module(part) for part in images.split(500)])
    module.train()
    return logits.float()


class EpochScores(Callback):
    def __init__(self, path: Path, setting: Setting, domains: Any, target: str) -> None:
        self.path, self.setting, self.domains, self.target = path, setting, domains, target
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        append_row(self.path, {**self.setting._asdict(), "epoch": trainer.current_epoch + 1,
                               **scores(pl_module, self.domains, self.setting.source, self.target),
                               "seconds": round(time.perf_counter() - self.start, 1)})


def scores(module: Any, domains: Any, source: str, target: str) -> dict[str, float]:
    row = {}
    for name, (images, labels) in {"source_test": domains[source]["test"], "target_test": domains[target]["test"],
                                   "target_train": domains[target]["train"]}.items():
        images, labels = images[:4000], labels[:4000]
        logits = predictions(module, images)
        row[name] = round(100 * (logits.argmax(1) == labels).double().mean().item(), 3)
        if name.startswith("target"):
            p = logits.double().softmax(1)
            mean = p.mean(0)
            entropy = -(p * p.clamp_min(1e-300).log()).sum(1).mean()
            row[f"{name}_im"] = round((-(mean * mean.log()).sum() - entropy).item(), 6)
            row[f"{name}_bnm"] = round((torch.linalg.matrix_norm(p, "nuc") / len(p)).item(), 6)
            row[f"{name}_entropy"] = round(entropy.item(), 6)
    return row


def run(setting: Setting, digits: Path, folder: Path) -> dict[str, Any]:
    domains = draw_domains(digits, setting.draw, 32 if "DM-ADA" in setting.method else 28)
    target = next(name for name in domains if name != setting.source)
    module = build(setting)
    pairs = DomainPairs(TensorDataset(*domains[setting.source]["train"]), TensorDataset(domains[target]["train"][0]))
    sampler = PairedBatchSampler(len(pairs.source), len(pairs.target), 100, setting.draw)
    name = "-".join(map(str, setting)).replace(" ", "_")
    checkpoint = folder / "checkpoints" / f"{name}.ckpt"
    saver = ModelCheckpoint(checkpoint.parent, filename=name, save_top_k=1, every_n_epochs=2, enable_version_counter=False, save_on_train_epoch_end=True)
    epochs = EpochScores(folder / "epochs.csv", setting, domains, target)
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=setting.epochs, logger=False, callbacks=[saver, epochs],
                      enable_progress_bar=False, enable_model_summary=False, precision=setting.precision)
    start = time.perf_counter()
    trainer.fit(module, PairedLoader(pairs, sampler), ckpt_path=str(checkpoint) if checkpoint.exists() else None)
    row = {**setting._asdict(), **scores(module, domains, setting.source, target), "seconds": round(time.perf_counter() - start, 1)}
    append_row(folder / "adaptation.csv", row)
    checkpoint.unlink(missing_ok=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--digits", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--sources", nargs="+", default=["mnist", "usps"])
    parser.add_argument("--draws", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--kl", type=float, default=1.0)
    parser.add_argument("--precision", default="bf16-mixed")
    args = parser.parse_args()
    keep_freed_memory()
    logging.getLogger(PACKAGE).setLevel(logging.WARNING)
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    for draw in args.draws:
        for source in args.sources:
            for method in args.methods:
                setting = Setting(method, source, draw, args.epochs, args.precision, args.kl)
                if pending([setting], read_rows(args.folder / "adaptation.csv")):
                    print(run(setting, args.digits, args.folder), flush=True)


if __name__ == "__main__":
    main()
