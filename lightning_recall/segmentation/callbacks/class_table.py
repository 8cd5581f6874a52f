"""A table with the scores of each class, on the screen and as CSV."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import get_console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from lightning_recall._lightning import LightningModule, Trainer
from lightning_recall.callbacks.after_evaluation import AfterEvaluation
from lightning_recall.callbacks.class_names import find_class_names
from lightning_recall.callbacks.output import (
    end_progress_bar,
    file_name,
    output_path,
    print_path,
    unused_paths,
    writes_files,
)
from lightning_recall.callbacks.score_text import cell, percent
from lightning_recall.segmentation.scores import PER_CLASS

BAR_WIDTH = 20  # characters of the longest bar
NUM_RAREST = 3
RAREST = "▲"


class ClassTable(AfterEvaluation):
    """After fit, validate and test, prints a row for each class: its share of the pixels, IoU, accuracy and precision.

    The share is printed as a number and as a bar of text; a mark shows the rarest classes. Below are the means over
    classes, see `SegmentationScores`. All numbers are in percent. A class without a score has "-". The same numbers are
    written to `class_scores_val.csv` or `class_scores_test.csv` in the run's folder, as fractions. After fit, the table
    shows the last validation.

    The module must have an attribute `class_scores`: name of each dataloader, "" for a single one -> result of
    `SegmentationScores.compute()`. `SegmentationModule` sets it and adds this callback to every run. Any other module
    can set it at the end of a validation or test epoch.

    Args:
        class_names: names of the classes; None: the module's `class_names`, those of the data module, or numbers.

    Raises:
        ValueError: after an evaluation: if the module has no `class_scores`, or the number of names is not that of the
            classes.
    """

    attribute = "class_scores"

    def show(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        """Prints and writes the tables of all dataloaders."""
        if not getattr(pl_module, "class_scores", None):
            raise ValueError(
                f"ClassTable needs {type(pl_module).__name__}.class_scores: set it to {{'': scores.compute()}} with "
                "the SegmentationScores of the epoch, or remove ClassTable."
            )
        end_progress_bar(trainer)
        for part, scores in pl_module.class_scores.items():  # type: ignore[union-attr, operator]  # nn.Module attributes are typed Tensor or Module
            names = self.names(trainer, pl_module, len(scores["iou"]))
            if trainer.is_global_zero:
                on = f" on {part}" if part else ""
                get_console().print(class_table(scores, names, f"Classes of the {split} split{on}, in %"))
            if writes_files(trainer):
                path = output_path(trainer, file_name("class_scores", split, part) + ".csv")  # on all processes
                if trainer.is_global_zero:
                    (path,) = unused_paths(path)
                    write_csv(path, scores, names)
                    print_path("Scores of each class", path)

    def names(self, trainer: Trainer, pl_module: LightningModule, num_classes: int) -> Sequence[str]:
        """Names of the classes."""
        return find_class_names((self, pl_module, getattr(trainer, "datamodule", None)), num_classes)


def class_table(scores: Mapping[str, Tensor], names: Sequence[str], title: str) -> Table:
    """A row for each class, and one for the means."""
    fractions = scores["pixel_fraction"].tolist()
    marks = rarest(fractions)
    table = Table(title=escape(title), caption=f"{RAREST} the rarest classes" if marks else None)
    table.add_column("class", overflow="fold")
    table.add_column("pixels", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in ("IoU", "accuracy", "precision"):
        table.add_column(column, justify="right")
    longest = max([fraction for fraction in fractions if fraction == fraction], default=0.0)
    for number, (name, fraction) in enumerate(zip(names, fractions, strict=True)):
        values = [percent(scores[score][number].item()) for score in PER_CLASS]
        bar_of_text = bar(fraction, longest) + f" {RAREST}" * (number in marks)
        table.add_row(
            escape(name), percent(fraction, 2), bar_of_text.strip(), *values, end_section=number == len(names) - 1
        )
    means = [percent(scores[name].item()) for name in ("miou", "mean_accuracy", "mean_precision")]
    table.add_row("mean", "", f"pixel accuracy {percent(scores['pixel_accuracy'].item())}", *means)
    return table


def rarest(fractions: Sequence[float]) -> set[int]:
    """Numbers of the rarest classes, up to three, of those that occur with less than half of an equal share.

    >>> sorted(rarest([0.5, 0.0, 0.3, 0.01, 0.02, 0.06, 0.11])), rarest([0.4, 0.6])
    ([3, 4, 5], set())
    """
    rare = [number for number, fraction in enumerate(fractions) if 0 < fraction < 0.5 / len(fractions)]
    return set(sorted(rare, key=lambda number: fractions[number])[:NUM_RAREST])


def bar(fraction: float, longest: float) -> str:
    """A bar whose length is proportional to a fraction of the pixels; at least one character for a class that occurs.

    >>> bar(0.25, 0.5), bar(0.001, 0.5), bar(0.0, 0.5)
    ('██████████', '▏', '')
    """
    if not fraction > 0:
        return ""
    return "█" * round(BAR_WIDTH * fraction / longest) or "▏"


def write_csv(path: Path, scores: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Writes a row for each class and one for the means; a score that does not exist is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "pixel_fraction", *PER_CLASS])
        for number, name in enumerate(names):
            writer.writerow([name, *(cell(scores[score][number].item()) for score in ("pixel_fraction", *PER_CLASS))])
        means = [cell(scores[name].item()) for name in ("miou", "mean_accuracy", "mean_precision")]
        writer.writerow(["mean over classes", "", *means])
