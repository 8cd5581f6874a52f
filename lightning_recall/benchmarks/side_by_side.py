"""Training steps of this library beside those of other libraries: the same network, data, batches and loss.

Images: RetrievalModule, plain LightningModules with pytorch-metric-learning's losses, and the published code's step.
Texts: chunked_forward, sentence-transformers and GradCache. Other packages are not needed: their rows are left out, and
a line says how to get them.

Columns: images or text pairs per second; peak memory of a step, of its tensors and as the growth of the process; error
of the gradient that the optimizer gets, in float64, relative to the same loss of the whole batch in one graph: without
dropout, with dropout, and on two processes with half of the batch each; how often a step of two processes reduces all
gradients; Recall@1 on unseen classes or topics after the same time of training.
"""

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from lightning_recall.benchmarks import side_by_side_measure as measures
from lightning_recall.benchmarks.measure import machine
from lightning_recall.benchmarks.side_by_side_images import ImageTask
from lightning_recall.benchmarks.side_by_side_measure import CPU, DROPOUT, THREADS
from lightning_recall.benchmarks.side_by_side_task import Row, Task
from lightning_recall.benchmarks.side_by_side_text import TextTask
from lightning_recall.memory_allocation import keep_freed_memory

POOL = 200  # different batches for the training that is scored

Values = dict[str, Any]
"""column -> value"""


def speed(task: Task, rows: Sequence[Row], options: argparse.Namespace) -> Iterator[tuple[str, Values]]:
    """Images or pairs per second."""
    for name, seconds in measures.step_seconds(task, rows, options.rounds, options.steps):
        yield name, {"items/s": task.batch_size / seconds}


def memory(task: Task, rows: Sequence[Row], _: argparse.Namespace) -> Iterator[tuple[str, Values]]:
    """Peak memory of a step."""
    for name, peak in measures.peaks(task, rows):
        yield name, {"tensors, MiB": peak.tensors, "process, MiB": peak.process}


def gradient(task: Task, rows: Sequence[Row], _: argparse.Namespace) -> Iterator[tuple[str, Values]]:
    """Error of the gradient of one process."""
    for row in rows:
        errors = [measures.gradient_error(task, row, dropout) for dropout in (0.0, DROPOUT)]
        yield row.name, {"gradient error": errors[0], "with dropout": errors[1]}


def processes(task: Task, rows: Sequence[Row], _: argparse.Namespace) -> Iterator[tuple[str, Values]]:
    """All-reduces and error of the gradient of two processes."""
    for name, (all_reduces, error) in measures.synchronisations(task, rows):
        yield name, {"all-reduces": all_reduces, "2 processes": error}


def score(task: Task, rows: Sequence[Row], options: argparse.Namespace) -> Iterator[tuple[str, Values]]:
    """Recall@1 in percent after a fixed time of training."""
    for row in rows:
        yield row.name, {"R@1, %": 100 * measures.score_after(task, row, options.seconds, POOL)}


MEASURES: dict[str, Callable[[Task, Sequence[Row], argparse.Namespace], Iterator[tuple[str, Values]]]] = {
    function.__name__: function for function in (speed, memory, gradient, processes, score)
}
FORMATS = {
    "items/s": "{:,.0f}",
    "tensors, MiB": "{:,.0f}",
    "process, MiB": "{:,.0f}",
    "gradient error": "{:.0e}",
    "with dropout": "{:.0e}",
    "all-reduces": "{}",
    "2 processes": "{:.0e}",
    "R@1, %": "{:.1f}",
}
"""column -> how its values are shown"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser("lightning_recall.benchmarks.side_by_side", description=__doc__)
    add = made.add_argument
    add("--tasks", nargs="+", choices=("images", "text"), default=["images", "text"], help="kinds of rows")
    add("--rows", nargs="+", metavar="TEXT", help="only rows whose step or loss contains one of these texts")
    add("--measure", nargs="+", choices=MEASURES, default=list(MEASURES), help="groups of columns")
    add("--batch-size", type=int, default=256, help="images or text pairs in a batch, a multiple of 8")
    add("--chunk-size", type=int, default=64, help="images or texts in one pass of the network")
    add("--backbone", metavar="NAME", help="a timm model for the images, with random weights; default: SmallConvNet")
    add("--published", metavar="DIR", help="a clone of github.com/yash0307/RecallatK_surrogate")
    add("--grad-cache", metavar="DIR", help="a clone of github.com/luyug/GradCache, if it is not installed")
    add("--rounds", type=int, default=3, help="rounds of timing; the rows take turns")
    add("--steps", type=int, default=3, help="timed steps of each row in a round; the median is reported")
    add("--seconds", type=float, default=20.0, help="training before the score: processor time, one thread")
    add("--output", metavar="FILE", help="CSV file for the table")
    return made


def main(args: list[str] | None = None) -> None:
    """Prints a table and, with --output, writes it as CSV."""
    options = parser().parse_args(args)
    console, tasks = Console(), build_tasks(options)
    for task in tasks:
        for name, hint in task.absent().items():
            console.print(f"Not measured: {name} ({hint}).")
    measures.set_up(THREADS)
    console.print(f"{machine(CPU)}; batches of {options.batch_size}, chunks of {options.chunk_size}, fp32")
    results = [row for task in tasks for row in measure(task, options, console)]
    console.print(results_table(results))
    if options.output:
        with Path(options.output).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["task", "step", "loss", *FORMATS])
            writer.writeheader()
            writer.writerows(results)


def build_tasks(options: argparse.Namespace) -> list[Task]:
    """The tasks that the options choose."""
    sizes = {"batch_size": options.batch_size, "chunk_size": options.chunk_size}
    tasks: list[Task] = []
    if "images" in options.tasks:
        tasks.append(ImageTask(**sizes, backbone=options.backbone, published=options.published))
    if "text" in options.tasks:
        tasks.append(TextTask(**sizes, grad_cache=options.grad_cache))
    return tasks


def measure(task: Task, options: argparse.Namespace, console: Console) -> list[Values]:
    """Step, loss and measurements of each chosen row of a task."""
    rows = [row for row in task.rows() if any(text in row.name for text in options.rows or [""])]
    results: dict[str, Values] = {row.name: {"task": task.items, "step": row.step, "loss": row.loss} for row in rows}
    for name in options.measure:
        measured = [row for row in rows if row.distributed or name != "processes"]
        total = len(measured) * (options.rounds if name == "speed" else 1)
        for row, values in track(
            MEASURES[name](task, measured, options), f"{task.items}: {name}", total, console=console
        ):
            results[row] |= values
    return list(results.values())


def results_table(results: Sequence[Values]) -> Table:
    """The results, with a line between the tasks; columns that were not measured are left out."""
    columns = [column for column in FORMATS if any(column in row for row in results)]
    table = Table("step", "loss", *columns)
    for row, following in zip(results, [*results[1:], None], strict=True):
        cells = [FORMATS[column].format(row[column]) if column in row else "" for column in columns]
        ends = following is not None and following["task"] != row["task"]
        table.add_row(row["step"], row["loss"], *cells, end_section=ends)
    return table


if __name__ == "__main__":
    keep_freed_memory()
    main()
