"""A table with the accuracy of each class on both domains, on the screen and as CSV."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import get_console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from lightning_recall._lightning import LightningModule, Trainer
from lightning_recall.adaptation.callbacks.confusions import (
    Confused,
    class_accuracies,
    confusions_of,
    mean_class_accuracy,
    most_confused,
    overall_accuracy,
)
from lightning_recall.callbacks.after_evaluation import AfterEvaluation
from lightning_recall.callbacks.class_names import find_class_names
from lightning_recall.callbacks.output import (
    end_progress_bar,
    output_path,
    print_path,
    unused_paths,
    writes_files,
)
from lightning_recall.callbacks.score_text import cell, percent

MAX_ROWS = 40  # more classes do not fit on a screen


class DomainTable(AfterEvaluation):
    """After fit, validate and test, prints a row for each class: images and accuracy on source and target.

    The last column is the class for which target images are most often mistaken, and how many of them are. Below are
    the mean over classes and the accuracy over all images. All accuracies are in percent. A class without images has
    "-". The same numbers are written to `domain_scores_val.csv` or `domain_scores_test.csv` in the run's folder, as
    fractions. After fit, the table shows the last validation. Of more than 40 classes, the table shows those with the
    lowest accuracy on the target; the file holds all. A domain without labels has no columns.

    The module must have an attribute `confusions`: domain, "source" or "target" -> confusion matrix (K, K) of the last
    evaluation; rows are true classes, columns are predictions. `AdaptationModule` sets it and adds this callback to
    every run. Any other module can set it at the end of a validation or test epoch.

    Args:
        class_names: names of the classes; None: the module's `class_names`, those of the data module, or numbers.

    Raises:
        ValueError: after an evaluation: if the module has no `confusions`, or the number of names is not that of the
            classes.
    """

    attribute = "confusions"

    def show(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        """Prints and writes the table."""
        confusions = confusions_of(pl_module, "DomainTable")
        if not confusions:
            return
        num_classes = len(next(iter(confusions.values())))
        names = find_class_names((self, pl_module, getattr(trainer, "datamodule", None)), num_classes)
        end_progress_bar(trainer)
        if trainer.is_global_zero:
            get_console().print(domain_table(confusions, names, f"Classes of the {split} split, accuracy in %"))
        if writes_files(trainer):
            path = output_path(trainer, f"domain_scores_{split}.csv")  # must be called on all processes
            if trainer.is_global_zero:
                (path,) = unused_paths(path)
                write_csv(path, confusions, names)
                print_path("Accuracy of each class", path)


def domain_table(confusions: Mapping[str, Tensor], names: Sequence[str], title: str) -> Table:
    """A row for each class, or for those with the lowest accuracy, and one each for the mean and for all images.

    Args:
        confusions: domain -> confusion matrix (K, K); at least one. The last is the one whose confusions are shown.
        names: K names.
        title: title of the table.
    """
    main = list(confusions)[-1]
    rows = shown_rows(class_accuracies(confusions[main]))
    hidden = len(names) - len(rows)
    caption = f"The {len(rows)} of {len(names)} classes with the lowest {main} accuracy; the CSV file holds all."
    table = Table(title=escape(title), caption=caption if hidden else None)
    table.add_column("class", overflow="fold")
    for domain in confusions:
        table.add_column(f"{escape(domain)}\nimages", justify="right", no_wrap=True)
        table.add_column(f"{escape(domain)}\naccuracy", justify="right", no_wrap=True)
    table.add_column(f"{escape(main)}\nmistaken for", overflow="fold")
    counts = {domain: matrix.sum(1).tolist() for domain, matrix in confusions.items()}
    accuracies = {domain: class_accuracies(matrix).tolist() for domain, matrix in confusions.items()}
    confused = most_confused(confusions[main])
    for row in rows:
        values = [text for d in confusions for text in (f"{counts[d][row]:,}", percent(accuracies[d][row]))]
        mistaken = confused[row]
        mistaken_for = "" if mistaken is None else mistaken_text(mistaken, names)
        table.add_row(escape(names[row]), *values, mistaken_for, end_section=row == rows[-1])
    means = [text for matrix in confusions.values() for text in ("", percent(mean_class_accuracy(matrix)))]
    table.add_row("mean", *means)
    matrices = confusions.values()
    overall = [text for matrix in matrices for text in (f"{int(matrix.sum()):,}", percent(overall_accuracy(matrix)))]
    table.add_row("all images", *overall)
    return table


def mistaken_text(mistaken: Confused, names: Sequence[str]) -> str:
    """The class and the fraction of a confusion.

    >>> mistaken_text(Confused(1, 0.0625), ["mug", "tray"])
    'tray (6.2 %)'
    """
    return f"{escape(names[mistaken.label])} ({percent(mistaken.fraction)} %)"


def shown_rows(accuracies: Tensor) -> list[int]:
    """Classes that the table shows, in order: all, or the 40 with the lowest accuracy (K,); NaN counts as high.

    >>> import torch
    >>> shown_rows(torch.tensor([0.5, 1.0, 0.2]))
    [0, 1, 2]
    """
    worst = accuracies.nan_to_num(float("inf")).argsort(stable=True)
    return sorted(worst[:MAX_ROWS].tolist())


def write_csv(path: Path, confusions: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Writes a row for each class, and one each for the mean and for all images; missing numbers are empty."""
    confused = {domain: most_confused(matrix) for domain, matrix in confusions.items()}
    accuracies = {domain: class_accuracies(matrix).tolist() for domain, matrix in confusions.items()}
    columns = ("images", "accuracy", "mistaken_for", "mistaken_fraction")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *(f"{domain}_{column}" for domain in confusions for column in columns)])
        for row, name in enumerate(names):
            cells: list[object] = [name]
            for domain, matrix in confusions.items():
                images, accuracy = int(matrix[row].sum()), cell(accuracies[domain][row])
                cells += [images, accuracy, *confused_cells(confused[domain][row], names)]
            writer.writerow(cells)
        matrices = confusions.values()
        means = [text for matrix in matrices for text in ("", cell(mean_class_accuracy(matrix)), "", "")]
        writer.writerow(["mean over classes", *means])
        overall = [text for m in matrices for text in (int(m.sum()), cell(overall_accuracy(m)), "", "")]
        writer.writerow(["all images", *overall])


def confused_cells(confused: Confused | None, names: Sequence[str]) -> tuple[str, str]:
    """Name and fraction; empty if no image is mistaken."""
    return ("", "") if confused is None else (names[confused.label], cell(confused.fraction))
