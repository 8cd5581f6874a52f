"""Where callbacks leave their files, and how they say so."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.image import imread
from pytorch_lightning import Trainer
from rich.console import Console


def output_path(trainer: Trainer, name: str) -> Path:
    """Path of a file in the run's folder, which is made."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def say_where(what: str, path: Path) -> None:
    """Prints one line: what was written, and where."""
    Console(soft_wrap=True, highlight=False).print(f"{what}: {path}")


def save_picture(trainer: Trainer, figure: Figure, path: Path, what: str) -> None:
    """Writes a picture, says where, and gives it to the loggers that take pictures: TensorBoard, Weights & Biases."""
    figure.savefig(path, dpi=110)
    say_where(what, path)
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(logger, "log_image"):
            logger.log_image(key=path.stem, images=[str(path)])
        elif hasattr(experiment, "add_image"):
            experiment.add_image(path.stem, imread(path), trainer.global_step, dataformats="HWC")
