"""Where a run leaves its files: a folder of its own, in which no file of another run is overwritten."""

import re
from itertools import count
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from lightning_recall._lightning import CSVLogger, TensorBoardLogger, Trainer, rank_zero_only

CHOSEN = "_lightning_recall_folder"  # attribute of a Trainer: so it reaches the processes that a launcher starts


def run_folder(trainer: Trainer) -> Path:
    """The folder of a run, the same on all processes, all of which must ask for it.

    It is the `log_dir` of a CSV or TensorBoard logger, `save_dir/name/version` of any other logger, as for Lightning's
    checkpoints, and without a logger a new `runs/version_N` in the Trainer's `default_root_dir`. A Trainer keeps it.
    """
    folder = vars(trainer).get(CHOSEN)
    if folder is None:
        is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # set by Lightning before processes meet
        folder = choose_folder(trainer) if is_first else ""
    folder = trainer.strategy.broadcast(folder)
    vars(trainer)[CHOSEN] = folder or None
    return Path(folder)


def choose_folder(trainer: Trainer) -> str:
    """The folder of a new run; a numbered one is made at once, so that no other run takes it."""
    logger = trainer.loggers[0] if trainer.loggers else None
    if isinstance(logger, CSVLogger | TensorBoardLogger):
        return str(logger.log_dir)
    if logger is None:
        return str(new_folder(Path(trainer.default_root_dir) / "runs"))
    parent = Path(logger.save_dir or trainer.default_root_dir, *filter(None, [str(logger.name or "")]))
    version = logger.version
    if version is None or version == "":
        return str(new_folder(parent))
    return str(parent / (version if isinstance(version, str) else f"version_{version}"))


def new_folder(parent: Path) -> Path:
    """Makes `version_N` with the lowest N above those in `parent`."""
    numbers = [int(path.name[8:]) for path in parent.glob("version_*") if path.name[8:].isdecimal()]
    for number in count(max(numbers, default=-1) + 1):
        folder = parent / f"version_{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another run was faster
            if not folder.exists():  # a file stands where `parent` should be
                raise
        else:
            return folder
    raise AssertionError  # count never ends


def keeps_files(trainer: Trainer) -> bool:
    """Whether a run leaves files; with `fast_dev_run` it does not."""
    return not trainer.fast_dev_run  # type: ignore[attr-defined]  # Lightning sets it


def output_path(trainer: Trainer, name: str) -> Path:
    """Path of a file in the run's folder, which is made; all processes must ask for it."""
    folder = run_folder(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def free_paths(*paths: Path) -> list[Path]:
    """The paths, or, where one of them exists, all with the first number that is free: report-1.html."""
    for number in count():
        free = [path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path for path in paths]
        if not any(path.exists() or path.is_symlink() for path in free):
            return free
    raise AssertionError  # count never ends


def file_name(*parts: str) -> str:
    """The parts that are not empty, joined by "_", without what is no part of a file's name, such as "/"."""
    return re.sub(r'[/\\:*?"<>|\x00-\x1f]', "_", "_".join(filter(None, parts)))


def print_path(what: str, path: Path) -> None:
    """Prints one line: what was written, and where."""
    Console(soft_wrap=True, highlight=False).print(f"{what}: {path}", markup=False)


def save_picture(trainer: Trainer, figure: Figure, path: Path, what: str) -> None:
    """Writes a picture beside those that exist, prints where, and gives it to loggers that take pictures."""
    key = path.stem
    (path,) = free_paths(path)
    figure.savefig(path, dpi=110)
    print_path(what, path)
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(logger, "log_image"):
            logger.log_image(key=key, images=[str(path)])
        elif hasattr(experiment, "add_image"):
            experiment.add_image(key, imread(path), trainer.global_step, dataformats="HWC")
