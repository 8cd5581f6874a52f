"""The validation scores of a training beside its baselines: a table, and what to try if the training is below them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich import get_console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from lightning_recall._lightning import ModelCheckpoint, Trainer, callbacks_of
from lightning_recall.callbacks.baselines import TITLES, UNTRAINED
from lightning_recall.callbacks.output import end_progress_bar, writes_files
from lightning_recall.metrics.scores import score_title

EARLY = 0.2  # a best validation in this first part of the training is early
MIN_VALIDATIONS = 3  # fewer validations show no trend
RETRIEVAL = "Retrieval on the val split, in %"

Scores = dict[str, float]
"""logged key -> score: {"val/recall@1": 0.79, "val/map@r": 0.31}"""


class Validation(NamedTuple):
    """One validation: how many epochs the training had, and the scores."""

    epochs: int
    scores: Scores


class ValidationHistory:
    """Scores of one training.

    Args:
        title: title of the table of the scores.
        columns: name of a score -> title of its column in the table; None: the columns of a retrieval.

    Attributes:
        baselines: title -> scores before the first step; the first is the one that a training should beat.
        validations: the validations during training, in order.
        new_baselines: baselines that are not yet printed: row -> name of the score -> score.
        new_metrics: the same, as logged: {"val/pretrained/recall@1": 0.79}.
    """

    def __init__(self, title: str = RETRIEVAL, columns: Mapping[str, str] | None = None) -> None:
        self.title, self.columns = title, columns
        self.baselines: dict[str, Scores] = {}
        self.validations: list[Validation] = []
        self.new_baselines: dict[str, dict[str, Tensor]] = {}
        self.new_metrics: Scores = {}

    def add_baseline(self, row: str, kind: str, part: str, scores: dict[str, Tensor]) -> None:
        """Adds the scores of a baseline on one dataloader.

        Args:
            row: title of the row; with several dataloaders it ends in " on NAME".
            kind: "pretrained" or "untrained".
            part: "NAME/" with several dataloaders, otherwise "".
            scores: name of the score -> score.
        """
        self.new_baselines[row] = scores
        for name, score in scores.items():
            self.new_metrics[f"val/{part}{kind}/{name}"] = score.item()
            self.baselines.setdefault(row.partition(" on ")[0], {})[f"val/{part}{name}"] = score.item()

    def state_dict(self) -> dict[str, Any]:
        """The scores as plain lists and dicts."""
        return {"baselines": self.baselines, "validations": [list(validation) for validation in self.validations]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the scores from a checkpoint."""
        self.baselines = dict(state["baselines"])
        self.validations = [Validation(*validation) for validation in state["validations"]]

    def best(self, monitor: str | None = None) -> Validation:
        """The validation with the highest score; the first of equal ones.

        Args:
            monitor: key of the score; the first main score if it is None or not recorded.
        """
        last = self.validations[-1].scores
        key = monitor if monitor in last else self.main_keys(last)[0]
        return max(self.validations, key=lambda validation: validation.scores.get(key, float("-inf")))

    def main_keys(self, keys: Any) -> list[str]:
        """The keys that are columns of the table."""
        if self.columns is None:
            return main_keys(keys)
        return [key for key in keys if key.rpartition("/")[2] in self.columns]

    def column_title(self, key: str) -> str:
        """Title of a column: mIoU for "val/miou", small mIoU for "val/small/miou", iou car for "val/iou/car"."""
        if self.columns is None:
            return column_title(key)
        *parts, name = key.split("/")[1:]
        return " ".join([*parts, self.columns.get(name, name)])

    def text(self, key: str, score: float) -> str:  # histories with other scores need the key
        """A score in the table, in percent."""
        return percent(score)


def history_of(trainer: Trainer) -> ValidationHistory | None:
    """The validation scores of a training: attribute `history` of a callback or of the module.

    None without such an attribute, or before a validation.
    """
    owners = [*callbacks_of(trainer), trainer.lightning_module]
    histories = [getattr(owner, "history", None) for owner in owners]
    return next((item for item in histories if isinstance(item, ValidationHistory) and item.validations), None)


def main_keys(keys: Any) -> list[str]:
    """The keys that people read, for each dataloader: recall at the first cut-off, and mAP@R; otherwise all."""
    chosen: list[str] = []
    for prefix in dict.fromkeys(key.rpartition("/")[0] for key in keys):
        own = [key for key in keys if key.rpartition("/")[0] == prefix]
        recalls = [key for key in own if key.startswith(f"{prefix}/recall@")]
        first = sorted(recalls, key=lambda key: int(key.rpartition("@")[2]))[:1]
        chosen += first + [key for key in own if key == f"{prefix}/map@r"] or own
    return chosen


def column_title(key: str) -> str:
    """Title of a column: R@1 for "val/recall@1", small mAP@R for "val/small/map@r"."""
    *dataloader, name = key.split("/")[1:]
    return " ".join([*dataloader, score_title(name)])


def result_table(history: ValidationHistory, monitor: str | None) -> Table:
    """Rows for the baselines, the best and the last validation; scores in percent."""
    last, best = history.validations[-1], history.best(monitor)
    keys = history.main_keys(last.scores)
    if history.columns is not None and monitor in last.scores and monitor not in keys:
        keys = [*keys, monitor]
    rows = [*history.baselines.items()]
    rows += [(f"best, after {count(best.epochs)}", best.scores), (f"last, after {count(last.epochs)}", last.scores)]
    table = Table(title=history.title, min_width=len(history.title))
    table.add_column("")
    for key in keys:
        table.add_column(history.column_title(key), justify="right")
    for name, scores in rows:
        table.add_row(escape(name), *(history.text(key, scores[key]) if key in scores else "" for key in keys))
    return table


def verdict(history: ValidationHistory, monitor: str | None, details: Mapping[str, Any]) -> str:
    """What to try next, if the best or the last validation is below the baseline; "" otherwise.

    Args:
        history: the scores.
        monitor: key that chooses the best checkpoint.
        details: `lr` and `max_epochs` of the training, if known; `freezing`: see `freezing_advice`.
    """
    if not history.baselines or not history.validations:
        return ""
    title, baseline = next(iter(history.baselines.items()))
    title = "scores before training" if title == TITLES[UNTRAINED] else title
    last, saved = history.validations[-1], history.best(monitor)
    key = main_keys(last.scores)[0]
    best = history.best(key)
    if key not in baseline or last.scores[key] >= baseline[key]:
        return ""
    name = column_title(key)
    if best.scores[key] >= baseline[key]:
        advice = "use its checkpoint, and train" if saved == best else "train"
        return (
            f"The training ended below the {title}: {name} {percent(last.scores[key])}, {percent(baseline[key])} "
            f"without training. The best validation, after {count(best.epochs)}, reached {percent(best.scores[key])}: "
            f"{advice} with a lower learning rate{current_value(details, 'lr')} or fewer epochs."
        )
    total = details.get("max_epochs")
    epochs = f"{best.epochs} of {total} epochs" if total else count(best.epochs)
    text = (
        f"The training did not beat the {title}: {name} {percent(best.scores[key])} at best, after {epochs}, "
        f"{percent(baseline[key])} without training. "
    )
    for other in main_keys(last.scores)[1:]:
        if best.scores[other] > baseline.get(other, 1.0):
            text += f"{column_title(other)} rose from {percent(baseline[other])} to {percent(best.scores[other])}. "
    return text + trend(history, best) + what_to_try(details)


def monitor_of(trainer: Trainer) -> str | None:
    """The score that chooses the best checkpoint; None if no ModelCheckpoint monitors one that should be high."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return next((callback.monitor for callback in callbacks if callback.monitor and callback.mode == "max"), None)


def print_verdict(trainer: Trainer, history: ValidationHistory) -> None:
    """Prints what to try next, if a training ends below its baseline."""
    details: dict[str, Any] = {"max_epochs": max(trainer.max_epochs or 0, 0)}
    if trainer.optimizers:
        details["lr"] = trainer.optimizers[0].defaults.get("lr")  # the schedule does not change it
    details["freezing"] = freezing_advice(trainer.lightning_module)
    text = verdict(history, monitor_of(trainer), details)
    if text and writes_files(trainer) and trainer.is_global_zero:
        end_progress_bar(trainer)
        print_paragraph(text)


def trend(history: ValidationHistory, best: Validation) -> str:
    """What the position of the best validation says; "" if it says nothing."""
    position, number = history.validations.index(best), len(history.validations)
    if number < MIN_VALIDATIONS:
        return ""
    if position == number - 1:
        return "The last validation was the best: train longer. "
    is_early = position < EARLY * number
    return "The best validation was among the first: the learning rate is too high. " if is_early else ""


def what_to_try(details: Mapping[str, Any]) -> str:
    """What usually helps a training below the features that it started from, in order."""
    return (
        f"Try, in this order: a lower learning rate{current_value(details, 'lr')}; more epochs"
        f"{current_value(details, 'max_epochs')}; {details.get('freezing', '')}larger images."
    )


def freezing_advice(module: Any) -> str:
    """What to try with the backbone of a module frozen or trained; "" if it cannot be frozen, or has no new layer."""
    head = getattr(getattr(module, "embedder", None), "head", None)
    if not hasattr(module, "unfreeze_epoch") or not isinstance(head, nn.Module) or isinstance(head, nn.Identity):
        return ""
    if module.unfreeze_epoch is None:
        return "the backbone trained too (unfreeze_epoch: 0); "
    return (
        "the backbone frozen in the first epochs (unfreeze_epoch); a head on a frozen backbone (unfreeze_epoch: null); "
    )


def current_value(details: Mapping[str, Any], name: str) -> str:
    """The present value in brackets; "" if it is not known."""
    return f" (now {details[name]:g})" if details.get(name) else ""


def percent(score: float) -> str:
    """0.7904 -> "79.0"."""
    return f"{100 * score:.1f}"


def count(epochs: int) -> str:
    """1 -> "1 epoch"."""
    return f"{epochs:,} epoch" + "s" * (epochs != 1)


def print_paragraph(text: str) -> None:
    """Prints a paragraph, wrapped at the width of the terminal."""
    get_console().print(text, highlight=False, markup=False)
