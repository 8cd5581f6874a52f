"""Chooses the output folder of a run, and unused file names in it."""

import re
from itertools import count
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.image import imread
from rich import get_console

from lightning_recall._lightning import CSVLogger, TensorBoardLogger, Trainer, is_fast_dev_run, rank_zero_only

TQDM_BARS = {"validate": "val_progress_bar", "test": "test_progress_bar", "predict": "predict_progress_bar"}
"""what the Trainer does -> attribute of TQDMProgressBar; in fit, Lightning ends it early enough"""

RUN_FOLDER_ATTRIBUTE = "_lightning_recall_folder"  # stored on the Trainer, so that launched processes inherit it


def run_folder(trainer: Trainer) -> Path:
    """The folder of a run, the same on all processes. Must be called on all processes.

    - With a CSV or TensorBoard logger, its `log_dir`.
    - With any other logger, its `save_dir/name/version`, as for Lightning's checkpoints.
    - Without a logger, a new `runs/version_N` in the Trainer's `default_root_dir`.

    It is chosen once per Trainer.
    """
    folder = vars(trainer).get(RUN_FOLDER_ATTRIBUTE)
    if folder is None:
        is_rank_zero = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # set by Lightning before the process group exists
        folder = choose_folder(trainer) if is_rank_zero else ""
    folder = trainer.strategy.broadcast(folder)
    vars(trainer)[RUN_FOLDER_ATTRIBUTE] = folder or None
    return Path(folder)


def choose_folder(trainer: Trainer) -> str:
    """The folder of a new run; a numbered folder is created immediately, to reserve it."""
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
    """Creates `version_N`, with N one above the highest number in `parent`."""
    numbers = [int(path.name[8:]) for path in parent.glob("version_*") if path.name[8:].isdecimal()]
    for number in count(max(numbers, default=-1) + 1):
        folder = parent / f"version_{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another run created it first
            if not folder.exists():  # `parent` is a file
                raise
        else:
            return folder
    raise AssertionError  # count never ends


def writes_files(trainer: Trainer) -> bool:
    """Whether a run writes files; False with `fast_dev_run`."""
    return not is_fast_dev_run(trainer)


def output_path(trainer: Trainer, name: str) -> Path:
    """Path of a file in the run's folder, which is created. Must be called on all processes."""
    folder = run_folder(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def unused_paths(*paths: Path) -> list[Path]:
    """Returns the paths unchanged if none exists; otherwise adds the first unused number to all: report-1.html."""
    for number in count():
        numbered = [path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path for path in paths]
        if not any(path.exists() or path.is_symlink() for path in numbered):
            return numbered
    raise AssertionError  # count never ends


def file_name(*parts: str) -> str:
    """Joins the non-empty parts by "_", and replaces characters that file names cannot contain, such as "/"."""
    return re.sub(r'[/\\:*?"<>|\x00-\x1f]', "_", "_".join(filter(None, parts)))


def print_path(description: str, path: Path) -> None:
    """Prints one line: a description of what was written, and its path."""
    print_line(f"{description}: {path}")


def print_line(text: str) -> None:
    """Prints a line above the progress bar, if there is one; it is not wrapped, so that paths can be copied."""
    get_console().print(text, soft_wrap=True, highlight=False, markup=False)


def end_progress_bar(trainer: Trainer) -> None:
    """Ends the progress bar, so that what is printed from now on stays below it; the next run starts a new one."""
    bar: Any = trainer.progress_bar_callback
    if hasattr(bar, "progress"):  # RichProgressBar
        if bar.progress is not None:
            bar.progress.stop()
    elif bar is not None and trainer.state.fn in TQDM_BARS:
        tqdm_bar = getattr(bar, TQDM_BARS[trainer.state.fn], None)
        if tqdm_bar is not None:
            tqdm_bar.close()


def save_picture(trainer: Trainer, figure: Figure, path: Path, description: str, key: str = "") -> None:
    """Saves a figure under an unused name, prints its path, and logs it to loggers that support images.

    Args:
        trainer: the Trainer.
        figure: the figure.
        path: path of the file.
        description: what is printed before the path.
        key: name of the image in loggers; "": the stem of the file's name.
    """
    key = key or path.stem
    (path,) = unused_paths(path)
    figure.savefig(path, dpi=110)
    print_path(description, path)
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(logger, "log_image"):
            logger.log_image(key=key, images=[str(path)])
        elif hasattr(experiment, "add_image"):
            experiment.add_image(key, imread(path), trainer.global_step, dataformats="HWC")
