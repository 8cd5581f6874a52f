"""The table of scores that an evaluation prints: a row for the model and for each baseline."""

from collections.abc import Mapping, Sequence

from rich import get_console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from torch import Tensor

from lightning_recall._lightning import LightningModule, rank_zero_only
from lightning_recall.callbacks.baselines import PRETRAINED, TITLES, UNTRAINED, title_of
from lightning_recall.callbacks.validation_history import (
    column_title,
    freezing_advice,
    main_keys,
    percent,
    print_paragraph,
    what_to_try,
)
from lightning_recall.metrics.bootstrap import Interval

MODEL = "model"

Rows = Mapping[str, Mapping[str, Tensor]]
"""title of a row -> name of a score -> score in [0, 1]"""

Intervals = Mapping[str, Mapping[str, Interval]]
"""title of a row -> name of a score -> its interval"""


def row_title(kind: str, pl_module: LightningModule, names: Sequence[int | str], dataloader_idx: int) -> str:
    """Title of a row: "model", or a baseline; with several dataloaders, also which one."""
    name = names[dataloader_idx]
    title = MODEL if kind == MODEL else title_of(kind, pl_module)
    return title + (f" on {'dataloader ' * isinstance(name, int)}{name}" if len(names) > 1 else "")


@rank_zero_only
def print_scores(rows: Rows, title: str, caption: str = "", intervals: Intervals | None = None) -> None:
    """Prints a table of scores in percent, with the interval of each score beside it.

    On narrow terminals the intervals of the model are below its scores, and baselines have none; if they do not fit
    either, the table has only scores.
    """
    console, intervals = get_console(), intervals or {}
    of_model = {row: ends for row, ends in intervals.items() if row.split(" on ")[0] == MODEL}
    layouts = (intervals, " ", ", "), (of_model, "\n", ", "), (of_model, "\n", ",\n")
    for shown, separator, comma in (*layouts, ({}, "", "")):
        table = score_table(rows, title, caption, shown, separator, comma)
        if Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width:
            break
    console.print(table)


def score_table(
    rows: Rows, title: str, caption: str, intervals: Intervals, separator: str = " ", comma: str = ", "
) -> Table:
    """A table of scores in percent; `separator` is between a score and its interval, `comma` between its ends."""
    below = "\n".join(filter(None, [caption, *interval_notes(intervals)]))
    table = Table(title=title, caption=below or None, min_width=max(len(title), len(caption)))
    table.add_column("")
    for name in next(iter(rows.values())):
        table.add_column(column_title(f"split/{name}"), justify="right")
    for row, scores in rows.items():
        ends = {name: interval_text(value).replace(", ", comma) for name, value in intervals.get(row, {}).items()}
        cells = [separator.join(filter(None, (percent(scores[name].item()), ends.get(name)))) for name in scores]
        table.add_row(escape(row), *cells)
    return table


def interval_text(interval: Interval, digits: int = 1) -> str:
    """The ends of an interval in percent; "" if there is none.

    >>> interval_text(Interval(0.841, 0.829, 0.8524, 1.0, 30))
    '[82.9, 85.2]'
    """
    if interval.reason:
        return ""
    return f"[{100 * interval.lower:.{digits}f}, {100 * interval.upper:.{digits}f}]"


def interval_notes(intervals: Intervals) -> list[str]:
    """What the intervals are, and why a score has none."""
    every = [(name, interval) for scores in intervals.values() for name, interval in scores.items()]
    shown = sorted({interval.num_classes for _, interval in every if not interval.reason})
    counts = " to ".join(f"{count:,}" for count in dict.fromkeys([*shown[:1], *shown[-1:]]))
    notes = [f"95 % intervals: bootstrap over {counts} classes"] if shown else []
    reasons: dict[str, dict[str, None]] = {}
    for name, interval in every:
        if interval.reason:
            reasons.setdefault(interval.reason, {})[column_title(f"split/{name}")] = None
    return notes + [
        f"no interval{' for ' + ', '.join(names) if shown else ''}: {reason}" for reason, names in reasons.items()
    ]


@rank_zero_only
def print_if_below(rows: Rows, pl_module: LightningModule) -> None:
    """Says so if a trained model is below the features that it started from, and what to try.

    Only for a single dataloader, and if the model differs from the one before training. Without a new layer there is no
    row before training, and an untrained model scores like its features.
    """
    features, untrained, model = (rows.get(title) for title in (TITLES[PRETRAINED], TITLES[UNTRAINED], MODEL))
    if features is None or model is None or model == untrained:
        return
    key = main_keys([f"test/{name}" for name in model])[0]
    name = key.removeprefix("test/")
    if model[name] < features[name]:
        print_paragraph(
            f"The model is below the {TITLES[PRETRAINED]} that it started from: {column_title(key)} "
            f"{percent(model[name].item())}, {percent(features[name].item())} without training. "
            + what_to_try({"freezing": freezing_advice(pl_module)})
        )
