"""Time until the command answers, and until a training has its first batch, compared with the imports alone."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]  # a package without type hints
from rich.console import Console
from rich.table import Table

from lightning_recall._lightning import PACKAGE, Callback
from lightning_recall.benchmarks.loading import draw_images
from lightning_recall.benchmarks.measure import machine

IMPORTS, READING, FIT = f"import {PACKAGE}", "imports and reading of the data", "fit, first batch"
REACHED = 77  # exit code of a process that has its first batch, unlike those of Python and of the command
READ_DATA = f"""
import os, sys
import {PACKAGE}, timm, torchvision
from lightning_recall.data import ImageTransforms
from lightning_recall.datamodules import ImageFolderDataModule
data = ImageFolderDataModule(sys.argv[1], batch_size=32, transforms=ImageTransforms(size=64))
data.setup("fit")
next(iter(data.train_dataloader()))
os._exit({REACHED})
"""
SETTINGS = {
    "seed_everything": 0,
    "model": {
        "class_path": "RetrievalModule",
        "init_args": {
            "embedder": {"class_path": "ImageEmbedder", "init_args": {"backbone": "resnet18", "pretrained": False}},
            "loss": {"class_path": "RecallAtKLoss"},
            "chunk_size": "auto",
        },
    },
    "data": {
        "class_path": "ImageFolderDataModule",
        "init_args": {"batch_size": 32, "transforms": {"size": 64}},
    },
    "trainer": {
        "accelerator": "cpu",
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs"}},
        "callbacks": [{"class_path": "lightning_recall.benchmarks.start_up.ExitAtFirstBatch"}],
    },
}
"""the settings of `READ_DATA`, and a small network"""


class ExitAtFirstBatch(Callback):
    """Ends the process when the first training batch is loaded."""

    def on_train_batch_start(self, *_: Any) -> None:
        """Ends the process without any cleaning up, as `READ_DATA` does."""
        os._exit(REACHED)


def main(args: list[str] | None = None) -> None:
    """Prints a table with the seconds of each command in a new process."""
    parser = argparse.ArgumentParser("lightning_recall.benchmarks.start_up", description=__doc__)
    parser.add_argument("--images", type=int, default=400, help="number of files that the training reads")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many processes counts")
    options = parser.parse_args(args)
    console = Console()
    console.print(f"{machine(torch.device('cpu'))}; new processes, the best of {options.repeats} for each row")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.images)
        commands = commands_in(folder)
        rounds = [{row: seconds(*command, folder) for row, command in commands.items()} for _ in range(options.repeats)]
    console.print(start_up_table({row: min(times[row] for times in rounds) for row in commands}))


def prepare(folder: Path, images: int) -> None:
    """Writes a settings file, and images of 64 pixels with 8 in each class."""
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    for number, path in enumerate(draw_images(folder, 64, 64, images)):
        class_folder = folder / "photos" / f"class_{number // 8}"
        class_folder.mkdir(parents=True, exist_ok=True)
        path.rename(class_folder / path.name)


def commands_in(folder: Path) -> dict[str, tuple[list[str], int]]:
    """Name of a row -> (arguments of Python, expected exit code)."""
    command, settings = ["-m", "lightning_recall"], ["fit", "--config", "settings.yaml"]
    photos = str(folder / "photos")
    return {
        "import torch": (["-c", "import torch"], 0),
        IMPORTS: (["-c", IMPORTS], 0),
        "--help": ([*command, "--help"], 0),
        "--version": ([*command, "--version"], 0),
        "misspelt subcommand": ([*command, "fitt"], 2),
        "missing settings file": ([*command, "fit", "--config", "none.yaml"], 2),
        "fit --help": ([*command, "fit", "--help"], 0),
        "misspelt option": ([*command, *settings, "--trainer.max_epoch", "3"], 2),
        "missing folder of images": ([*command, *settings, "--data.root", "none"], 1),
        READING: (["-c", READ_DATA, photos], REACHED),
        FIT: ([*command, *settings, "--data.root", photos], REACHED),
    }


def seconds(arguments: list[str], exit_code: int, folder: Path) -> float:
    """Wall time of a new Python process in a folder.

    Raises:
        RuntimeError: if it ends with another exit code.
    """
    start = time.perf_counter()
    ended = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    if ended.returncode != exit_code:
        raise RuntimeError(f"{arguments} ended with {ended.returncode} instead of {exit_code}: {ended.stderr}")
    return taken


def start_up_table(times: dict[str, float]) -> Table:
    """One line for each row, with its ratio to the import of Lightning, or to the imports and reading of the data."""
    table = Table("", "seconds", f"/ {IMPORTS}", f"/ {READING}")
    for row, taken in times.items():
        with_data = f"{taken / times[READING]:.2f}" if row in (READING, FIT) else ""
        table.add_row(row, f"{taken:.2f}", f"{taken / times[IMPORTS]:.2f}", with_data)
    return table


if __name__ == "__main__":
    main()
