"""The table of scores that an evaluation prints: a row for the model and for each baseline."""

from collections.abc import Mapping, Sequence

from rich import get_console
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

MODEL = "model"

Rows = Mapping[str, Mapping[str, Tensor]]
"""title of a row -> name of a score -> score in [0, 1]"""


def row_title(kind: str, pl_module: LightningModule, names: Sequence[int | str], dataloader_idx: int) -> str:
    """Title of a row: "model", or a baseline; with several dataloaders, also which one."""
    name = names[dataloader_idx]
    title = MODEL if kind == MODEL else title_of(kind, pl_module)
    return title + (f" on {'dataloader ' * isinstance(name, int)}{name}" if len(names) > 1 else "")


@rank_zero_only
def print_scores(rows: Rows, title: str, caption: str = "") -> None:
    """Prints a table of scores in percent."""
    table = Table(title=title, caption=caption or None, min_width=max(len(title), len(caption)))
    table.add_column("")
    for name in next(iter(rows.values())):
        table.add_column(column_title(f"split/{name}"), justify="right")
    for row, scores in rows.items():
        table.add_row(row, *(percent(score.item()) for score in scores.values()))
    get_console().print(table)


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
