"""Monitors of callbacks and schedulers, compared before training with what will be logged."""

import difflib
import re
from collections.abc import Sequence
from types import FunctionType
from typing import Any

from lightning_recall._lightning import (
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    Trainer,
    callbacks_of,
    rank_zero_warn,
    silent_hooks,
)

KNOWN_PACKAGES = ("lightning_recall", "lightning", "pytorch_lightning", "lightning_fabric", "torch", "builtins")
ALWAYS_KNOWN = ("epoch", "step")  # to ModelCheckpoint
SILENT = silent_hooks() - {"on_validation_end"}
"""hooks in which Lightning refuses `log`; in the one left out callbacks write to `trainer.callback_metrics`"""


def check_monitors(trainer: Trainer, logged: Sequence[str], prefixes: Sequence[str]) -> None:
    """Compares every monitor with the keys that will be logged, and its mode with what is better.

    Where a module or callback of another package may log, too, the keys are not all known: then a monitor is warned of
    if it resembles a known key.

    Args:
        trainer: is about to train, and has set up its dataloaders.
        logged: keys that the module logs in training.
        prefixes: what keys start with that it may log besides.

    Raises:
        ValueError: for a monitor that is not logged, waits for a validation that does not take place, or has the wrong
            mode.
    """
    set_up = trainer.val_dataloaders is not None  # else the first validation is yet to do so
    validates = trainer.enable_validation and (not set_up or sum(map(float, as_list(trainer.num_val_batches))) > 0)
    scoring = callbacks_with(trainer, "logged_keys") if validates else []
    validated = [callback.logged_keys(trainer) for callback in scoring]
    scores = [key for keys in validated for key in keys or ()]
    unnamed = [callback for callback, keys in zip(scoring, validated, strict=True) if keys is None]
    check_modes(trainer, scores, unnamed)
    if unnamed:
        prefixes = [*prefixes, "val/"]
    if any(isinstance(callback, LearningRateMonitor) for callback in callbacks_of(trainer)):
        prefixes = [*prefixes, "lr-", *(config.name for config in trainer.lr_scheduler_configs if config.name)]
    known = [*logged, *scores]
    for callback in callbacks_with(trainer, "monitor"):
        monitor = callback.monitor
        lenient = not isinstance(callback, EarlyStopping | ModelCheckpoint) or not getattr(callback, "strict", True)
        if lenient or monitor is None or monitor in (*known, *ALWAYS_KNOWN) or monitor.startswith(tuple(prefixes)):
            continue
        what = f"{type(callback).__name__} monitors {monitor!r}"
        if monitor.startswith("val/") and not validates:
            refuse_without_validation(trainer, callback, what)
        else:
            refuse(trainer, monitor, what, known)


def check_modes(trainer: Trainer, scores: Sequence[str], unnamed: Sequence[Any]) -> None:
    """Raises ValueError for the wrong mode: scores are better when larger, the training loss when smaller.

    Args:
        trainer: with callbacks and schedulers.
        scores: keys of a validation.
        unnamed: callbacks that will log scores under "val/", with keys that are not known yet.
    """
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    watching = [part for part in (*callbacks_of(trainer), *schedulers) if hasattr(part, "monitor")]
    for part in watching:
        monitor, mode = part.monitor or "", getattr(part, "mode", None)
        name = monitor.rpartition("/")[2]
        scored = any(all_known(trainer) or name.startswith(tuple(callback.scores)) for callback in unnamed)
        larger = monitor in scores or (scored and monitor.startswith("val/")) or monitor.startswith("train/recall@")
        right = "max" if larger else "min" if monitor == "train/loss" else mode
        if mode in ("min", "max") and mode != right:
            better = "larger" if larger else "smaller"
            default = ", Lightning's default" if mode == "min" else ""
            raise ValueError(
                f'{type(part).__name__} monitors {monitor!r} with mode="{mode}"{default}, but {better} is '
                f'better: set mode="{right}".'
            )


def refuse(trainer: Trainer, monitor: str, what: str, known: list[str]) -> None:
    """Raises ValueError for a monitor that is not known; warns if somebody else may log it, and it looks mistyped."""
    alike = difflib.get_close_matches(monitor, known, 1)
    hint = other_cut_off(monitor, known) or (f" Did you mean {alike[0]!r}?" if alike else "")
    if all_known(trainer):
        if monitor.startswith("val/") and not callbacks_with(trainer, "logged_keys"):
            hint = " Add RetrievalEvaluation to the callbacks, which logs the scores of the validation."
        raise ValueError(f"{what}, which is not logged.{hint} Logged are: {', '.join(known)}.")
    if difflib.get_close_matches(monitor, known, 1, cutoff=0.9):
        rank_zero_warn(f"{what}, which RetrievalModule and RetrievalEvaluation do not log.{hint}")


def other_cut_off(monitor: str, known: Sequence[str]) -> str:
    """With which `ks` RetrievalEvaluation logs a score at another cut-off than those known; "" for other keys."""
    score, _, k = monitor.rpartition("@")
    ks = {int(key.rpartition("@")[2]) for key in known if re.fullmatch(re.escape(score) + r"@\d+", key)}
    if not (ks and re.fullmatch("[1-9][0-9]*", k) and score.startswith("val/")):
        return ""
    return f" RetrievalEvaluation logs it with ks={sorted({*ks, int(k)})}."


def refuse_without_validation(trainer: Trainer, callback: Any, what: str) -> None:
    """Raises ValueError for a monitor of a validation that never runs; warns where the last checkpoint is kept."""
    if not all_known(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning
        return
    if getattr(callback, "save_last", None):
        rank_zero_warn(f"{what}, but there is no validation: only the end of the training is saved.")
        return
    raise ValueError(
        f"{what}, but there is no validation: set classes aside (val_classes above 0), leave limit_val_batches as it "
        "is, or remove the monitor."
    )


def all_known(trainer: Trainer) -> bool:
    """Whether nothing but this package and Lightning can log."""
    logging = [trainer.lightning_module, *callbacks_of(trainer)]
    return not any(isinstance(part, LambdaCallback) or may_log(type(part)) for part in logging)


def may_log(kind: type) -> bool:
    """Whether a class of another package, among a class and its bases, has a method that could log."""
    others = [base for base in kind.__mro__ if base.__module__.split(".")[0] not in KNOWN_PACKAGES]
    own = [(name, value) for base in others for name, value in vars(base).items()]
    return any(
        isinstance(value, FunctionType) and name not in SILENT and not name.startswith("__") for name, value in own
    )


def callbacks_with(trainer: Trainer, name: str) -> list[Any]:
    """The Trainer's callbacks that have an attribute."""
    return [callback for callback in callbacks_of(trainer) if hasattr(callback, name)]


def as_list(number: Any) -> list[Any]:
    """A number, or several, as a list."""
    return list(number) if isinstance(number, Sequence) else [number]
