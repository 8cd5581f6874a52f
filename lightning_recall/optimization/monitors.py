"""Checks before training that monitored metrics will be logged."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
NON_LOGGING_HOOKS = silent_hooks() - {"on_validation_end"}
"""hooks in which Lightning refuses `log`; on_validation_end is excluded, because callbacks write to
trainer.callback_metrics there"""


@dataclass(frozen=True)
class LoggedMetrics:
    """What a module logs in training, and which callback scores its validation.

    Args:
        keys: keys that the module logs in training.
        prefixes: prefixes of further keys that the module may log.
        lower: keys of which lower values are better.
        higher: prefixes of training keys of which higher values are better.
        evaluation: name of the callback that logs the scores of the validation, for messages.
    """

    keys: Sequence[str]
    prefixes: Sequence[str] = ()
    lower: Sequence[str] = ()
    higher: Sequence[str] = ()
    evaluation: str = "an evaluation callback"


def check_monitors(trainer: Trainer, logged: LoggedMetrics) -> None:
    """Checks each monitor against the logged keys, and its mode against the metric's direction.

    A callback with a method `logged_keys(trainer)` lists the validation scores that it logs, all of them better when
    higher; None if their names are not known before the first validation.

    If third-party modules or callbacks may log, unknown monitors only give a warning, and only if they resemble a known
    key.

    Args:
        trainer: with dataloaders already set up.
        logged: what its module logs.

    Raises:
        ValueError: for a monitor that is not logged, that needs a validation which does not run, or that has the wrong
            mode.
    """
    set_up = trainer.val_dataloaders is not None  # otherwise they are set up in the first validation
    validates = trainer.enable_validation and (not set_up or sum(map(float, as_list(trainer.num_val_batches))) > 0)
    evaluation_callbacks = callbacks_with(trainer, "logged_keys") if validates else []
    logged_keys = [callback.logged_keys(trainer) for callback in evaluation_callbacks]
    scores = [key for keys in logged_keys for key in keys or ()]
    with_unknown_keys = [part for part, keys in zip(evaluation_callbacks, logged_keys, strict=True) if keys is None]
    check_modes(trainer, logged, scores, with_unknown_keys)
    prefixes = [*logged.prefixes, "val/"] if with_unknown_keys else [*logged.prefixes]
    if any(isinstance(callback, LearningRateMonitor) for callback in callbacks_of(trainer)):
        prefixes += ["lr-", *(config.name for config in trainer.lr_scheduler_configs if config.name)]
    known = [*logged.keys, *scores]
    for callback in callbacks_with(trainer, "monitor"):
        monitor = callback.monitor
        lenient = not isinstance(callback, EarlyStopping | ModelCheckpoint) or not getattr(callback, "strict", True)
        if lenient or monitor is None or monitor in (*known, *ALWAYS_KNOWN) or monitor.startswith(tuple(prefixes)):
            continue
        description = f"{type(callback).__name__} monitors {monitor!r}"
        if monitor.startswith("val/") and not validates:
            raise_or_warn_without_validation(trainer, callback, description)
        else:
            raise_or_warn_unknown_monitor(trainer, monitor, description, known, logged.evaluation)


def check_modes(
    trainer: Trainer, logged: LoggedMetrics, scores: Sequence[str], with_unknown_keys: Sequence[Any]
) -> None:
    """Raises ValueError if a mode is not "max" for scores, or not "min" for keys of which lower values are better.

    Args:
        trainer: with callbacks and schedulers.
        logged: what its module logs.
        scores: keys of validation scores.
        with_unknown_keys: callbacks that will log scores under "val/" whose keys are not known yet.
    """
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for part in (*callbacks_of(trainer), *schedulers):
        monitor, mode = getattr(part, "monitor", None) or "", getattr(part, "mode", None)
        name = monitor.rpartition("/")[2]
        scored = any(all_known(trainer) or name.startswith(tuple(callback.scores)) for callback in with_unknown_keys)
        higher = monitor in scores or (scored and monitor.startswith("val/"))
        higher = higher or monitor.startswith(tuple(logged.higher))
        right = "max" if higher else "min" if monitor in logged.lower else mode
        if hasattr(part, "monitor") and mode in ("min", "max") and mode != right:
            default = ", Lightning's default" if mode == "min" else ""
            raise ValueError(
                f'{type(part).__name__} monitors {monitor!r} with mode="{mode}"{default}, but '
                f'{"larger" if higher else "smaller"} is better: set mode="{right}".'
            )


def raise_or_warn_unknown_monitor(
    trainer: Trainer, monitor: str, description: str, known: list[str], evaluation: str
) -> None:
    """Raises ValueError for an unknown monitor; warns if third-party code may log it and it resembles a known key.

    Args:
        trainer: with its module and callbacks.
        monitor: which is not known.
        description: of what monitors it.
        known: keys that are logged.
        evaluation: name of the callback that logs the scores of the validation.
    """
    alike = difflib.get_close_matches(monitor, known, 1)
    hint = other_cut_off(monitor, known, evaluation) or (f" Did you mean {alike[0]!r}?" if alike else "")
    if all_known(trainer):
        if monitor.startswith("val/") and not callbacks_with(trainer, "logged_keys"):
            hint = f" Add {evaluation} to the callbacks, which logs the scores of the validation."
        raise ValueError(f"{description}, which is not logged.{hint} Logged are: {', '.join(known)}.")
    if difflib.get_close_matches(monitor, known, 1, cutoff=0.9):
        rank_zero_warn(f"{description}, which is not among the known keys.{hint} Known are: {', '.join(known)}.")


def other_cut_off(monitor: str, known: Sequence[str], evaluation: str) -> str:
    """Hint naming the `ks` needed to log this cut-off; "" if the monitor is not an @k score."""
    score, _, k = monitor.rpartition("@")
    ks = {int(key.rpartition("@")[2]) for key in known if re.fullmatch(re.escape(score) + r"@\d+", key)}
    if not (ks and re.fullmatch("[1-9][0-9]*", k) and score.startswith("val/")):
        return ""
    return f" {evaluation} logs it with ks={sorted({*ks, int(k)})}."


def raise_or_warn_without_validation(trainer: Trainer, callback: Any, description: str) -> None:
    """Raises ValueError if a monitored validation metric is never computed; only warns if save_last is set."""
    if not all_known(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning
        return
    if getattr(callback, "save_last", None):
        rank_zero_warn(f"{description}, but there is no validation: only the end of the training is saved.")
        return
    raise ValueError(
        f"{description}, but there is no validation: hold out validation data (val_classes above 0), do not set "
        "limit_val_batches to 0, or remove the monitor."
    )


def all_known(trainer: Trainer) -> bool:
    """Whether only this package and Lightning can log metrics."""
    logging = [trainer.lightning_module, *callbacks_of(trainer)]
    return not any(isinstance(part, LambdaCallback) or may_log(type(part)) for part in logging)


def may_log(kind: type) -> bool:
    """Whether the class, or a base class from another package, defines a method that could log."""
    others = [base for base in kind.__mro__ if base.__module__.split(".")[0] not in KNOWN_PACKAGES]
    defined = [(name, value) for base in others for name, value in vars(base).items()]
    return any(
        isinstance(value, FunctionType) and name not in NON_LOGGING_HOOKS and not name.startswith("__")
        for name, value in defined
    )


def callbacks_with(trainer: Trainer, name: str) -> list[Any]:
    """The Trainer's callbacks that have an attribute."""
    return [callback for callback in callbacks_of(trainer) if hasattr(callback, name)]


def as_list(number: Any) -> list[Any]:
    """A number, or several, as a list."""
    return list(number) if isinstance(number, Sequence) else [number]
