"""Results of a benchmark with several methods and seeds: a CSV file that grows run by run, a table and a plot."""

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

SCORES = ("recall@1", "map@r")
PRETRAINED = "pretrained features"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of earlier runs; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Appends a row; a new file starts with the names of the columns."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of the scores over the seeds, best Recall@1 first."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], str(row["rate"]), str(row["batch"])), []).append(row)
    merged = []
    for (method, rate, batch), runs in groups.items():
        entry: dict[str, Any] = {"method": method, "rate": rate, "batch": batch, "seeds": len(runs)}
        for name in SCORES:
            values = [float(row[name]) for row in runs]
            entry[name] = statistics.mean(values)
            entry[f"{name} std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        merged.append({**entry, "seconds": statistics.median(float(row["seconds"]) for row in runs)})
    return sorted(merged, key=lambda entry: -entry["recall@1"])


def summary_table(entries: Sequence[dict[str, Any]], title: str) -> Table:
    """One line for each method, rate and batch size."""
    table = Table("method", "lr", "batch", "seeds", *(name.replace("recall", "R") for name in SCORES), "s", title=title)
    for entry in entries:
        scores = [f"{entry[name]:.1f} ± {entry[f'{name} std']:.1f}" for name in SCORES]
        trained = entry["method"] != PRETRAINED
        numbers = [entry["rate"], entry["batch"]] if trained else ["", ""]
        table.add_row(entry["method"], *numbers, str(entry["seeds"]), *scores, f"{entry['seconds']:.0f}")
    return table


def draw_summary(entries: Sequence[dict[str, Any]], title: str) -> Figure:
    """Plots Recall@1 and mAP@R of each entry with its standard deviation; a line marks the pretrained features."""
    ordered = list(reversed(entries))
    figure = Figure(figsize=(10, 0.32 * len(ordered) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(SCORES), sharey=True)
    names = [f"{entry['method']}, {entry['batch']}" for entry in ordered]
    for axes, name in zip(panels, SCORES, strict=True):
        means, spreads = [entry[name] for entry in ordered], [entry[f"{name} std"] for entry in ordered]
        axes.errorbar(means, range(len(ordered)), xerr=spreads, fmt="o", capsize=3)
        for entry in entries:
            if entry["method"] == PRETRAINED:
                axes.axvline(entry[name], linestyle=":", color="gray", label=PRETRAINED)
        axes.set_xlabel(f"{name.replace('recall', 'Recall')} on unseen classes, %")
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(ordered)), names)
    figure.suptitle(title)
    return figure
