"""Trains one network on CamVid with each loss, in an equal number of steps, and scores it on whole images.

With --choose, the first seed is trained with every rate of --rates and scored on the validation images; the test images
are not read. Without it, every seed is trained with the rate of the best validation mIoU in the CSV file, or with those
of --rates, and scored on the test images. With --weights the backbone starts from a file, otherwise from scratch.
Results are appended to segmentation.csv after each run; a run that is already in the file is not repeated, so an
interrupted benchmark can be continued. Focal, Dice and Lovasz losses need segmentation-models-pytorch.
"""

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lightning_recall._lightning import PACKAGE, seed_everything
from lightning_recall.benchmarks.losses import quiet_trainer
from lightning_recall.benchmarks.measure import machine
from lightning_recall.benchmarks.result_rows import (
    append_row,
    draw_summary,
    pending,
    read_rows,
    rows_of,
    summary,
    summary_table,
)
from lightning_recall.benchmarks.segmentation_methods import METHODS, PixelCounts
from lightning_recall.memory_allocation import keep_freed_memory
from lightning_recall.optimization import WarmupCosineLR
from lightning_recall.segmentation.data import IGNORED_PIXEL, SegmentationTransforms
from lightning_recall.segmentation.datamodules import CamVidDataModule
from lightning_recall.segmentation.models import FeaturePyramidSegmenter
from lightning_recall.segmentation.module import SegmentationModule
from lightning_recall.segmentation.scores import SegmentationScores

RATES = (1e-3, 3e-3)  # of the backbone
HEAD_RATIO = 4  # rate of the new layers / rate of the backbone
BAND = 2  # pixels on each side of a boundary
NUM_RARE = 3
SCORES = {
    "miou": "mIoU",
    "mean_accuracy": "accuracy",
    "mean_precision": "precision",
    "pixel_accuracy": "pixel acc.",
    "rare_iou": "rare IoU",
    "rare_accuracy": "rare acc.",
    "boundary_miou": "boundary",
}
"""name -> heading; accuracy and precision are means over classes, rare ones over the three rarest classes, and boundary
is the mIoU near boundaries"""
PLOTTED = {
    "miou": "mIoU, %",
    "mean_accuracy": "mean accuracy, %",
    "mean_precision": "mean precision, %",
    "boundary_miou": f"mIoU within {BAND} px of boundaries, %",
}
"""name -> label of the axis"""


class Setting(NamedTuple):
    """What the scores of a run depend on; a run with the same setting is not repeated.

    weights is "" for a training from scratch; crop and scale are those of `SegmentationTransforms`.
    """

    method: str
    rate: float
    seed: int
    steps: int
    batch: int
    crop: str
    scale: str
    split: str
    data: str
    backbone: str
    weights: str


class CamVidInMemory(CamVidDataModule):
    """CamVid whose images are decoded once and stay in memory, 130 kB each at 240 x 180 pixels."""

    def read(self) -> dict[str, Any]:
        """The data sets of `CamVidDataModule`."""
        data = super().read()
        for files in data.values():
            files.read = cache(files.read)  # type: ignore[method-assign]  # transforms return new tensors
        return data


@cache
def camvid(root: str, batch: int, crop: str, scale: str) -> tuple[CamVidInMemory, PixelCounts]:
    """The data module of all runs, and the pixels of each class in each training mask."""
    size, factors = numbers(crop), numbers(scale)
    transforms = SegmentationTransforms(
        crop_size=(int(size[0]), int(size[1])), scale=(factors[0], factors[1]), color_jitter=0.0
    )
    data = CamVidInMemory(root, batch_size=batch, transforms=transforms)
    data.setup("fit")
    masks = (data.train_data.read_mask(index) for index in range(len(data.train_data)))
    counts = [np.bincount(mask[mask != IGNORED_PIXEL], minlength=data.num_classes) for mask in masks]
    return data, PixelCounts(np.stack(counts))


def numbers(text: str) -> list[float]:
    """'96x128' -> [96.0, 128.0]."""
    return [float(part) for part in text.split("x")]


def boundary_band(masks: Tensor, width: int = BAND) -> Tensor:
    """Where another class lies within `width` pixels, horizontally, vertically or diagonally.

    Boundaries with ignored pixels do not count. Scores in such a band (trimap) are common for boundaries: Kohli,
    Ladicky, Torr, IJCV 2009.

    Args:
        masks: (B, H, W) int64, classes and `IGNORED_PIXEL`.
        width: in pixels.

    Returns:
        (B, H, W) bool.

    >>> boundary_band(torch.tensor([[[0, 0, 0, 1, 255, 2]]]), 1).int().tolist()
    [[[0, 0, 1, 1, 0, 0]]]
    """
    values = masks[:, None].float()
    ignored = values == IGNORED_PIXEL
    pool = partial(F.max_pool2d, kernel_size=2 * width + 1, stride=1, padding=width)
    highest = pool(values.masked_fill(ignored, -1))
    lowest = -pool(-values.masked_fill(ignored, IGNORED_PIXEL))
    return ((highest > lowest) & ~ignored).squeeze(1)


@torch.no_grad()
def score(module: SegmentationModule, loader: Any, rarest: Sequence[int]) -> dict[str, float]:
    """All scores of the images of a loader, in percent."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    overall, boundary = (SegmentationScores(module.num_classes, IGNORED_PIXEL).to(device) for _ in range(2))
    module.to(device).eval()
    for images, masks in loader:
        predictions, masks = module(images.to(device)).argmax(1), masks.to(device)
        overall.update(predictions, masks)
        boundary.update(predictions, masks.masked_fill(~boundary_band(masks), IGNORED_PIXEL))
    scores = overall.compute()
    rare = {f"rare_{name}": scores[name][list(rarest)].nanmean() for name in ("iou", "accuracy")}
    found = {**scores, **rare, "boundary_miou": boundary.compute()["miou"]}
    of_classes = {
        f"{score}_{name}": value
        for score in ("iou", "accuracy", "precision")
        for name, value in zip(module.class_names, scores[score], strict=True)
    }
    chosen = {name: found[name] for name in SCORES} | of_classes
    return {name: round(100 * float(value), 2) for name, value in chosen.items()}


def run(setting: Setting) -> dict[str, Any]:
    """Trains one method and scores it on the images of its split."""
    seed_everything(setting.seed, verbose=False)
    data, counts = camvid(setting.data, setting.batch, setting.crop, setting.scale)
    data.seed = setting.seed
    module = SegmentationModule(
        FeaturePyramidSegmenter(data.num_classes, setting.backbone, setting.weights or False),
        METHODS[setting.method](counts),
        data.num_classes,
        class_names=data.class_names,
        head_lr=HEAD_RATIO * setting.rate,
        optimizer=partial(torch.optim.AdamW, lr=setting.rate, weight_decay=0.01, fused=True),
        lr_scheduler=WarmupCosineLR,
        lr_interval="step",
    )
    start = time.perf_counter()
    quiet_trainer(max_epochs=-1, max_steps=setting.steps, limit_val_batches=0).fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    loader = data.val_dataloader() if setting.split == "val" else data.test_dataloader()
    scores = score(module, loader, counts.rarest(NUM_RARE).tolist())
    return {**setting._asdict(), **scores, "seconds": round(seconds, 1)}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser("lightning_recall.benchmarks.segmentation", description=__doc__)
    add, names = made.add_argument, list(METHODS)
    add("--camvid", required=True, metavar="DIR", help="CamVid in the layout of the SegNet tutorial")
    add("--weights", metavar="FILE", help="pretrained weights of the backbone; default: from scratch")
    add("--backbone", default="tf_efficientnet_lite0", metavar="NAME", help="a timm model")
    add("--methods", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)}")
    add("--steps", type=int, default=600, help="optimizer steps of each run")
    add("--batch-size", type=int, default=4, help="images of a step")
    add("--crop", default="96x128", metavar="HxW", help="size of the training images, pixels")
    add(
        "--scale", default="0.75x1.5", metavar="LOWxHIGH", help="smallest and largest factor by which images are scaled"
    )
    add("--rates", type=float, nargs="+", help="rates of the backbone; default: the best on the validation images")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each method; --choose takes the first")
    add("--choose", action="store_true", help="score on the validation images instead of the test images")
    add("--output", default="segmentation", metavar="DIR", help="folder for segmentation.csv and segmentation.png")
    return made


def settings_of(options: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """The runs that the options ask for: seed by seed, all methods.

    Raises:
        ValueError: for a test without --rates of a method that has no validated rate.
    """
    weights = str(Path(options.weights).resolve()) if options.weights else ""
    recipe = (options.steps, options.batch_size, options.crop, options.scale)
    source = (str(Path(options.camvid).resolve()), options.backbone, weights)
    seeds = options.seeds[:1] if options.choose else options.seeds
    found = []
    for seed in seeds:
        for method in options.methods:
            validated = Setting(method, 0.0, options.seeds[0], *recipe, "val", *source)
            rates = options.rates or (list(RATES) if options.choose else [best_rate(validated, rows)])
            split = "val" if options.choose else "test"
            found += [validated._replace(rate=rate, seed=seed, split=split) for rate in rates]
    return found


def best_rate(setting: Setting, rows: Sequence[Mapping[str, Any]]) -> float:
    """The rate with the best validation mIoU among the rows that differ from a setting in nothing but the rate."""
    candidates = {float(row["rate"]) for row in rows}
    tried = rows_of([setting._replace(rate=rate) for rate in candidates], rows)
    if not tried:
        raise ValueError(f"No rate of {setting.method!r} has been validated: run with --choose first, or give --rates.")
    return float(max(tried, key=lambda row: float(row["miou"]))["rate"])


def main(args: list[str] | None = None) -> None:
    """Runs what is not in the CSV file yet, prints a table and draws a plot."""
    options = parser().parse_args(args)
    console, folder = Console(), Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "segmentation.csv"
    settings = settings_of(options, read_rows(path))
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)  # the devices of each Trainer
    console.print(machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    for setting in track(pending(settings, read_rows(path)), "runs", console=console):
        append_row(path, run(setting))
    start = "pretrained" if options.weights else "from scratch"
    split = "validation" if options.choose else "test"
    title = f"CamVid, {split} images, {start}, {options.steps} steps of {options.batch_size}"
    entries = summary(rows_of(settings, read_rows(path)), list(SCORES), ("method", "rate"))
    console.print(summary_table(entries, title, SCORES, {"rate": "lr"}))
    keys = ["rate"] if options.choose else []
    name = f"segmentation_{split}_{start.replace(' ', '_')}.png"
    draw_summary(entries, title, PLOTTED, keys).savefig(folder / name, dpi=110)


if __name__ == "__main__":
    keep_freed_memory()
    main()
