"""Where callbacks leave their files, and how they say so."""

from pathlib import Path

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
