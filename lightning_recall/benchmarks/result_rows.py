"""Results of a benchmark with several methods and seeds: a CSV file that grows run by run, a table and a plot."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure
from rich.table import Table

PRETRAINED = "pretrained features"
Setting = TypeVar("Setting")


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


def pending(settings: Sequence[Setting], rows: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """The settings (NamedTuples) that have no row yet."""
    return [setting for setting in settings if not rows_of([setting], rows)]


def rows_of(settings: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of some settings (NamedTuples)."""
    names = settings[0]._fields if settings else ()
    wanted = {tuple(map(str, setting)) for setting in settings}
    return [row for row in rows if tuple(str(row[name]) for name in names) in wanted]


def summary(
    rows: Sequence[Mapping[str, Any]], scores: Sequence[str], keys: Sequence[str] = ("method", "rate", "batch")
) -> list[dict[str, Any]]:
    """Mean and standard deviation of the scores over the seeds, best first score first.

    Args:
        rows: one for each run, with `scores`, `keys` and "seconds".
        scores: names of the scores.
        keys: columns that runs of a group have in common.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    merged = []
    for group, runs in groups.items():
        entry: dict[str, Any] = {**dict(zip(keys, group, strict=True)), "seeds": len(runs)}
        for name in scores:
            values = [float(row[name]) for row in runs]
            entry[name] = statistics.mean(values)
            entry[f"{name} std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        merged.append({**entry, "seconds": statistics.median(float(row["seconds"]) for row in runs)})
    return sorted(merged, key=lambda entry: -entry[scores[0]])


def summary_table(
    entries: Sequence[Mapping[str, Any]], title: str, scores: Mapping[str, str], keys: Mapping[str, str]
) -> Table:
    """One line for each group of runs; without the settings of a training for the pretrained features.

    Args:
        entries: result of `summary`.
        title: above the table.
        scores: name of a score -> its heading.
        keys: key of `summary` after the method -> its heading.
    """
    table = Table("method", *keys.values(), "seeds", *scores.values(), "s", title=title)
    for entry in entries:
        cells = [f"{entry[name]:.1f} ± {entry[f'{name} std']:.1f}" for name in scores]
        trained = entry["method"] != PRETRAINED
        numbers = [str(entry[key]) if trained else "" for key in keys]
        table.add_row(entry["method"], *numbers, str(entry["seeds"]), *cells, f"{entry['seconds']:.0f}")
    return table


def draw_summary(
    entries: Sequence[Mapping[str, Any]], title: str, scores: Mapping[str, str], keys: Sequence[str] = ()
) -> Figure:
    """Plots scores of each group of runs with their standard deviations; a line marks the pretrained features.

    Args:
        entries: result of `summary`.
        title: above the plot.
        scores: name of a score -> label of its axis.
        keys: keys of `summary` that are written after the method.
    """
    ordered = list(reversed(entries))
    figure = Figure(figsize=(2 + 4 * len(scores), 0.32 * len(ordered) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True)
    names = [", ".join([entry["method"], *(str(entry[key]) for key in keys)]) for entry in ordered]
    for axes, (name, label) in zip(panels, scores.items(), strict=True):
        means, spreads = [entry[name] for entry in ordered], [entry[f"{name} std"] for entry in ordered]
        axes.errorbar(means, range(len(ordered)), xerr=spreads, fmt="o", capsize=3)
        for entry in entries:
            if entry["method"] == PRETRAINED:
                axes.axvline(entry[name], linestyle=":", color="gray", label=PRETRAINED)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(ordered)), names)
    figure.suptitle(title)
    return figure
