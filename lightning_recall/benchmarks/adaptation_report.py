"""What the epochs of the adaptation benchmark show: the last epoch, chosen epochs, and how validators rank them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table
from torchmetrics.functional import spearman_corrcoef

RULES = {
    "last": "last epoch",
    "source_test": "source accuracy",
    "target_train_information_maximization": "IM",
    "target_train_bnm": "BNM",
    "target_test": "target labels",
}
"""column of an epoch -> how the epoch is chosen by its maximum; "last": the last epoch"""
CHOICES = {
    "source_test": "source accuracy",
    "target_train_information_maximization": "information maximization",
    "target_train_bnm": "BNM",
    "target_train_negative_entropy": "negative entropy",
}
"""column of an epoch that needs no target labels -> what it is"""
PUBLISHED = {
    ("source only", "mnist"): "75",
    ("source only", "usps"): "57",
    ("DANN", "mnist"): "77.1",
    ("DANN", "usps"): "73.0",
    ("DM-ADA", "mnist"): "94.8",
    ("DM-ADA", "usps"): "94.2",
}
"""(method, source) -> accuracy on the target, cited from memory and not checked: USPS if the source is MNIST"""

Row = Mapping[str, Any]


def runs_of(rows: Sequence[Row], keys: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """Run -> its epochs, in order; an epoch that an interrupted run repeated counts once."""
    found: dict[tuple[str, ...], dict[int, Row]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[key]) for key in keys), {})[int(row["epoch"])] = row
    return {run: [epochs[number] for number in sorted(epochs)] for run, epochs in found.items()}


def chosen_accuracy(epochs: Sequence[Row], rule: str, score: str = "target_test") -> float:
    """Accuracy on the target at the epoch that a rule of `RULES` chooses; the first of equal ones."""
    if rule == "last":
        return float(epochs[-1][score])
    return float(max(epochs, key=lambda row: float(row[rule]))[score])


def choice_table(groups: Mapping[tuple[str, str], Sequence[Sequence[Row]]]) -> Table:
    """Accuracy on the target's test images, mean and standard deviation over the draws, for each rule of choice.

    Args:
        groups: (method, source) -> runs -> epochs.
    """
    table = Table(
        "method", "source", "draws", *RULES.values(), "published", title="Target accuracy, %, by chosen epoch"
    )
    for (method, source), runs in groups.items():
        cells = [spread([chosen_accuracy(epochs, rule) for epochs in runs]) for rule in RULES]
        table.add_row(method, source, str(len(runs)), *cells, PUBLISHED.get((method, source), ""))
    return table


def correlations(groups: Mapping[tuple[str, str], Sequence[Sequence[Row]]], source: str) -> dict[str, list[float]]:
    """Validator -> Spearman rank correlation with target accuracy: over last epochs, and the mean within the runs.

    Args:
        groups: (method, source) -> runs -> epochs.
        source: the runs with this source domain are used.
    """
    runs = [epochs for (_, name), found in groups.items() if name == source for epochs in found]
    result = {}
    for column in CHOICES:
        over_runs = rank_correlation([epochs[-1] for epochs in runs], column)
        within = [rank_correlation(epochs, column) for epochs in runs]
        known = [value for value in within if value == value]
        result[column] = [over_runs, statistics.mean(known) if known else float("nan")]
    return result


def correlation_table(groups: Mapping[tuple[str, str], Sequence[Sequence[Row]]]) -> Table:
    """Rank correlations of the validators with the target accuracy, for each source domain."""
    table = Table("validator", title="Spearman rank correlation with target accuracy")
    sources = list(dict.fromkeys(source for _, source in groups))
    for source in sources:
        table.add_column(f"{source}: last epochs", justify="right")
        table.add_column(f"{source}: within a run", justify="right")
    values = {source: correlations(groups, source) for source in sources}
    for column, name in CHOICES.items():
        table.add_row(name, *(f"{value:.2f}" for source in sources for value in values[source][column]))
    return table


def rank_correlation(rows: Sequence[Row], column: str) -> float:
    """Spearman's correlation of a column with the target accuracy; NaN for constants.

    >>> rank_correlation([{"a": 1, "target_test": 5}, {"a": 2, "target_test": 7}, {"a": 3, "target_test": 9}], "a")
    1.0
    """
    values, accuracies = ([float(row[name]) for row in rows] for name in (column, "target_test"))
    if len(set(values)) < 2 or len(set(accuracies)) < 2:
        return float("nan")
    return round(spearman_corrcoef(torch.tensor(values), torch.tensor(accuracies)).item(), 4)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation.

    >>> spread([70.0, 74.0]), spread([70.0])
    ('72.0 ± 2.8', '70.0')
    """
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean
